# The node with ROS 2 from wheels, built by the commands of the README:
#   docker build -t tar_vis_ros .
#   docker run --rm -it --network=host --shm-size=1g tar_vis_ros
#   docker run --rm -it --network=host --shm-size=1g tar_vis_ros tar-vis-node --ros-args -p autostart:=true
# An NVIDIA GPU: see docs/install.md; the image has torch's build for CPUs.
FROM debian:12

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv python3-dev cmake g++ make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /tar_vis_ros
COPY . .
RUN make setup PIP_ARGS=--no-cache-dir
ENV PATH=/tar_vis_ros/.venv/bin:$PATH
CMD ["tar-vis", "doctor"]
