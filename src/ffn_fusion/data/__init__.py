"""Turn text into token windows for calibration, training and evaluation; seeded, and the same on every machine."""
