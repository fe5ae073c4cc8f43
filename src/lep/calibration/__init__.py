"""Self-calibration: the original instruct model's answers teach the adapted one (section 3.6)."""
