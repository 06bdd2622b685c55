import os as _os

# OpenCV reads this once, when it is loaded: no header of a picture makes it allocate more than 300 MB.
_os.environ.setdefault('OPENCV_IO_MAX_IMAGE_PIXELS', '100000000')
