"""The C++ header decodes what Python encodes: compiled by itself, without ROS and without Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
from building import ROOT
from test_messages import HEADER, HEIGHT, WIDTH, frame, instance, lost, random_masks

from tar_vis_ros.conversions.label_images import label_image
from tar_vis_ros.conversions.messages import encode_instances
from tar_vis_ros.msg import InstanceMaskArray

HEADER_FILE = ROOT / 'include/tar_vis_ros/masks.hpp'
PROGRAM = r'''
#include <tar_vis_ros/masks.hpp>
#include <iostream>
struct Roi { uint32_t x_offset, y_offset, height, width; };
struct Mask { uint32_t track_id; uint8_t status; float score; Roi roi; std::vector<uint32_t> runs; };
struct Array { uint32_t height, width; std::vector<Mask> instances; };
int main()
{
  Array array;
  size_t count, runs;
  std::cin >> array.height >> array.width >> count;
  for (size_t i = 0; i < count; ++i) {
    Mask one;
    unsigned status;
    std::cin >> one.track_id >> status >> one.score >> one.roi.x_offset >> one.roi.y_offset >> one.roi.height
      >> one.roi.width >> runs;
    one.status = static_cast<uint8_t>(status);
    one.runs.resize(runs);
    for (auto & run : one.runs) {std::cin >> run;}
    array.instances.push_back(one);
  }
  try {
    for (const auto & one : array.instances) {
      for (const auto pixel : tar_vis_ros::mask(array, one)) {std::cout << int{pixel} << ' ';}
      std::cout << '\n';
    }
    for (const auto id : tar_vis_ros::label_image(array)) {std::cout << id << ' ';}
  } catch (const std::invalid_argument & error) {
    std::cout << "refused: " << error.what();
  }
}
'''


@pytest.fixture(scope='module')
def program(tmp_path_factory) -> Path:
    compiler = shutil.which('g++') or shutil.which('clang++')
    if compiler is None:
        pytest.skip('there is no C++ compiler')
    folder = tmp_path_factory.mktemp('header')
    (folder / 'main.cpp').write_text(PROGRAM)
    done = subprocess.run([compiler, '-std=c++14', '-Wall', '-Wextra', '-Wpedantic', '-Werror', '-I', ROOT / 'include',
                           folder / 'main.cpp', '-o', folder / 'main'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / 'main'


def decoded(program: Path, message: InstanceMaskArray) -> list[str]:
    words = [message.height, message.width, len(message.instances)]
    for one in message.instances:
        roi = one.roi
        words += [one.track_id, one.status, one.score, roi.x_offset, roi.y_offset, roi.height, roi.width,
                  len(one.runs), *one.runs]
    return subprocess.run([program], input=' '.join(map(str, words)), capture_output=True, text=True,
                          check=True).stdout.splitlines()


def numbers(line: str) -> np.ndarray:
    return np.array(line.split(), int).reshape(HEIGHT, WIDTH)


def test_masks_and_labels_are_those_of_python(program):
    border = np.zeros((HEIGHT, WIDTH), bool)
    border[[0, -1]] = border[:, [0, -1]] = True
    drawn = [*random_masks(6), border, np.eye(HEIGHT, WIDTH, dtype=bool)]
    instances = [instance(mask, track_id=65530 + n, score=(n * 3 % 8) / 8) for n, mask in enumerate(drawn)] + [lost(3)]
    *masks, labels = decoded(program, encode_instances(frame(instances), HEADER))
    for mask, line in zip(drawn, masks[:-1], strict=True):
        np.testing.assert_array_equal(numbers(line), mask)
    assert not numbers(masks[-1]).any(), 'a lost one has an empty mask'
    np.testing.assert_array_equal(numbers(labels), label_image(instances, HEIGHT, WIDTH))


@pytest.mark.parametrize(('field', 'value', 'words'), [
    ('x_offset', WIDTH, 'track 8 leaves the image'), ('y_offset', 2**32 - 1, 'leaves the image'),
    ('height', 2**31, 'leaves the image'), ('runs', [3, 4], 'do not fill'), ('runs', [2**32 - 1] * 3, 'do not fill')])
def test_broken_messages_are_refused(program, field, value, words):
    message = encode_instances(frame([instance(random_masks(3)[1], track_id=8)]), HEADER)
    setattr(message.instances[0] if field == 'runs' else message.instances[0].roi, field, value)
    line, = decoded(program, message)
    assert line.startswith('refused: ') and words in line


def test_the_header_is_short_and_installed():
    assert len(HEADER_FILE.read_text().splitlines()) <= 100
    assert 'install(DIRECTORY include/ DESTINATION include/${PROJECT_NAME})' in (ROOT / 'CMakeLists.txt').read_text()
