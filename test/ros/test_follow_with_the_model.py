"""The whole chain in a closed loop: pictures of a person, the real model, the depth_lifter and the example agent."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('skimage')

from follow_world import DISTANCE, World
from node_process import NodeProcess, nano_weights
from sensor_msgs.msg import CameraInfo, Image
from simulated_camera import FRAME, HEIGHT, WALL_M, WIDTH, K, Thing
from skimage import data
from std_msgs.msg import Header

from tar_vis_ros.conversions.images import array_to_image
from tar_vis_ros.depth.lifting import DEPTHS

SIDE_M = 1.2     # of the photograph, which stands upright and faces the camera


class PhotographWorld(World):
    """As World, but the masks are those of the node tar_vis, which sees a photograph where the thing stands."""

    step_ns = 250_000_000

    def __init__(self, thing: Thing) -> None:
        super().__init__(thing)
        self.photograph = data.astronaut()
        self.images = self.node.create_publisher(Image, '/tar_vis/image', 10)

    def connect(self) -> None:
        super().connect()
        self.until(self.images.get_subscription_count, 'active node')

    def publish(self, *messages: Image | CameraInfo) -> None:
        image, *others = messages
        self.images.publish(image)
        super().publish(*others)

    def picture(self) -> Sequence:
        distance, bearing = self.robot.sees(self.things[0])
        x, z = -distance * np.sin(bearing), distance * np.cos(bearing)
        scale = SIDE_M / z * K[0] / len(self.photograph)
        place = np.array([[scale, 0, K[2] + K[0] * (x - SIDE_M / 2) / z], [0, scale, K[5] - K[4] * SIDE_M / 2 / z]])
        size = WIDTH, HEIGHT
        rgb = cv2.warpAffine(self.photograph, place, size, borderValue=(150, 160, 150), flags=cv2.INTER_AREA)
        shown = cv2.warpAffine(np.ones(self.photograph.shape[:2], np.uint8), place, size, flags=cv2.INTER_NEAREST)
        metres = np.where(shown, z, WALL_M) * self.random.normal(1, 0.01, shown.shape)
        header = Header(stamp=self.stamp, frame_id=FRAME)
        return (array_to_image(rgb, 'rgb8', header), array_to_image(metres.astype(np.float32), '32FC1', header, DEPTHS),
                CameraInfo(header=header, height=HEIGHT, width=WIDTH, k=K))


def test_the_robot_comes_to_a_person_that_the_model_sees(tmp_path):
    if nano_weights(tmp_path):
        pytest.skip('an untrained model sees nobody')
    person = Thing(0, 3.5, 0.8)
    node = NodeProcess(tmp_path, 'tar_vis', autostart=True, device='cpu', threads=1, score_threshold=0.3)
    sim = PhotographWorld(person)
    try:
        sim.begin()
        before = sim.robot.sees(person)
        for _ in range(30):
            sim.step()
        distance, bearing = sim.robot.sees(person)
        assert before[0] > 3 and distance == pytest.approx(DISTANCE, abs=0.2)
        assert abs(bearing) < 0.15 < abs(before[1])
        assert not node.lines('ERROR')
    finally:
        sim.close()
        node.end()
