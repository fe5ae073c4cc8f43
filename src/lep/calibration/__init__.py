"""Self-calibration: the original instruct model's own answers teach the adapted one (section 3.6)."""

from lep.calibration.calibrate import calibrate

__all__ = ["calibrate"]
