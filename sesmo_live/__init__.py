"""sesmo-live: live senescence scores from phase-contrast plate images."""
