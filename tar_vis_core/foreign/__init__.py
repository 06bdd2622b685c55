"""Models of other people behind our node: they find objects in single images, and ours follows them."""
