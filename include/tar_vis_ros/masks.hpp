// Decode the masks of tar_vis_ros/msg/InstanceMaskArray. Apache-2.0. C++14, no dependency: the functions take the
// generated messages, or anything with the same fields.
//
//   #include <tar_vis_ros/masks.hpp>
//   for (const auto & one : message->instances) {
//     std::vector<uint8_t> mask = tar_vis_ros::mask(*message, one);      // 1 where the instance is, else 0
//     bool person_there = mask[row * message->width + column];
//   }
//   std::vector<uint16_t> labels = tar_vis_ros::label_image(*message);   // what ~/label_image holds
//
// All throw std::invalid_argument if a message is broken.
#ifndef TAR_VIS_ROS__MASKS_HPP_
#define TAR_VIS_ROS__MASKS_HPP_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace tar_vis_ros
{

constexpr uint8_t LOST = 2;   // InstanceMask::LOST

/// Call paint(begin, length) for each piece of a row that belongs to the instance; begin counts pixels of the image.
template<typename Array, typename Mask, typename Paint>
void for_each_piece(const Array & array, const Mask & one, Paint paint)
{
  const auto & roi = one.roi;
  const uint64_t width = roi.width, pixels = width * roi.height;
  if (uint64_t{roi.x_offset} + roi.width > array.width || uint64_t{roi.y_offset} + roi.height > array.height) {
    throw std::invalid_argument("roi of track " + std::to_string(one.track_id) + " leaves the image");
  }
  uint64_t total = 0;
  for (const uint32_t run : one.runs) {
    total += run;
  }
  if (total != pixels) {
    throw std::invalid_argument("runs of track " + std::to_string(one.track_id) + " do not fill its roi");
  }
  uint64_t at = 0;            // inside the roi, row-major
  bool inside = false;        // the first run is background
  for (const uint32_t run : one.runs) {
    for (uint64_t left = inside ? run : 0, from = at; left > 0; ) {
      const uint64_t column = from % width, length = std::min(left, width - column);
      paint((roi.y_offset + from / width) * array.width + roi.x_offset + column, length);
      from += length;
      left -= length;
    }
    at += run;
    inside = !inside;
  }
}

/// The mask of one instance on the whole image, height x width, row-major: 1 where it is, else 0.
template<typename Array, typename Mask>
std::vector<uint8_t> mask(const Array & array, const Mask & one)
{
  std::vector<uint8_t> full(static_cast<size_t>(array.height) * array.width, 0);
  for_each_piece(array, one, [&full](uint64_t begin, uint64_t length) {
      std::fill_n(full.begin() + begin, length, uint8_t{1});
    });
  return full;
}

/// Track ids as an image, height x width, row-major, 0 where nobody is. The better score is on top, LOST is left out.
template<typename Array>
std::vector<uint16_t> label_image(const Array & array)
{
  std::vector<uint16_t> labels(static_cast<size_t>(array.height) * array.width, 0);
  std::vector<size_t> order(array.instances.size());
  for (size_t i = 0; i < order.size(); ++i) {
    order[i] = i;
  }
  std::stable_sort(order.begin(), order.end(), [&array](size_t a, size_t b) {
      return array.instances[a].score < array.instances[b].score;
    });
  for (const size_t i : order) {
    const auto & one = array.instances[i];
    if (one.status != LOST) {
      const auto id = static_cast<uint16_t>((one.track_id - 1) % 65535 + 1);
      for_each_piece(array, one, [&labels, id](uint64_t begin, uint64_t length) {
          std::fill_n(labels.begin() + begin, length, id);
        });
    }
  }
  return labels;
}

}  // namespace tar_vis_ros

#endif  // TAR_VIS_ROS__MASKS_HPP_
