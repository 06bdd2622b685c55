"""The node depth_lifter: instances and a depth image to positions in 3-D."""
