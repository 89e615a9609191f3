"""Drive Micro-Manager: a plan, its positions on a calibrated plate, the microscope, round after round."""
