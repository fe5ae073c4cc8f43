"""Self-calibration: the original instruct model's own answers teach the adapted one (section 3.6)."""
