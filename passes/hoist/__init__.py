"""Work moved out of the sampling loop, exactly: one cut, at three moments."""
