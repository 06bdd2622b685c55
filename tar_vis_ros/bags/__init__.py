"""rosbag2 bags (sqlite3 and MCAP) without a ROS installation's own tools: read, written, made from files."""
