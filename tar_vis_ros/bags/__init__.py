"""Read, write and make rosbag2 bags (sqlite3 and MCAP) without the tools of a ROS installation."""
