"""Between ROS messages and the types of tar_vis_core."""
