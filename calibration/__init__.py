"""Several cameras around a work cell become one rig: the rig file, and calibration with a printed board."""
