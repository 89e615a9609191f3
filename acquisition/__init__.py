"""Where images come from: folders, vendor layouts, TIFF reading, the virtual microscope."""
