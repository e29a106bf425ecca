#include "ops/binary_max_pool.h"

#include <algorithm>
#include <vector>

#include "drivers/pool_bits.h"

namespace bnn_deploy {
namespace {

constexpr int64_t kMinTaskWords = int64_t{1} << 11;  // some 10 microseconds
constexpr int64_t kMaxTasks = 256;

Rounding RoundingOf(int64_t ceil_mode) { return ceil_mode ? Rounding::kCeil : Rounding::kFloor; }

struct Image {
  const uint32_t* data;  // [depth][height][width][words]
  int64_t depth;
  int64_t height;
  int64_t width;
  int64_t words;
};

// One output row.
void PoolRow(const Image& image, const Axis& slices, const Axis& rows, const Axis& columns,
             int64_t out_z, int64_t out_y, int64_t out_width, uint32_t* out) {
  const TapRange z_taps = TapsInside(slices, image.depth, out_z);
  const TapRange y_taps = TapsInside(rows, image.height, out_y);
  thread_local std::vector<const uint32_t*> in_window;
  in_window.clear();
  for (int64_t j = z_taps.first; j < z_taps.last; ++j) {
    const int64_t z = out_z * slices.stride - slices.pad_begin + j * slices.dilation;
    for (int64_t i = y_taps.first; i < y_taps.last; ++i) {
      const int64_t y = out_y * rows.stride - rows.pad_begin + i * rows.dilation;
      in_window.push_back(image.data + (z * image.height + y) * image.width * image.words);
    }
  }
  PoolBits({in_window.data(), static_cast<int64_t>(in_window.size()), image.words, image.width,
            columns, out_width, out});
}

}  // namespace

const OpSchema BinaryMaxPool::kSchema = {"BinaryMaxPool", {kOrtUint32}, {kOrtUint32}};

BinaryMaxPool::BinaryMaxPool(const NodeInfo& node)
    : window_(node), rounding_(RoundingOf(node.Int("ceil_mode", 0, 1))) {}

void BinaryMaxPool::Compute(const Context& context) const {
  const Tensor x = context.Input(0);
  window_.CheckInput(x.shape, std::max<int64_t>(x.shape.rank > 0 ? x.shape.back() : 0, 1));
  const int64_t words = x.shape.back();
  Shape shape = window_.OutputPixels(x.shape, rounding_);
  shape.Append(words);
  auto* const out = static_cast<uint32_t*>(context.Output(0, shape));

  const Axis depth = window_.depth();
  const Axis height = window_.height();
  const Axis width = window_.width();
  const Image volume{x.As<uint32_t>(), window_.Depth(x.shape), window_.Height(x.shape),
                     window_.Width(x.shape), words};
  const int64_t image_words = volume.depth * volume.height * volume.width * words;
  const int64_t out_height = window_.Height(shape);
  const int64_t out_rows = window_.Depth(shape) * out_height;
  const int64_t out_width = window_.Width(shape);
  const int64_t rows = x.shape[0] * out_rows;
  if (rows == 0 || out_width == 0) return;
  const int64_t tasks =
      std::clamp(rows * out_width * words / kMinTaskWords, int64_t{1}, std::min(rows, kMaxTasks));
  RunTasks(context, tasks, [&](int64_t task) {
    const Range range = Part(rows, tasks, task);
    for (int64_t row = range.begin; row < range.end; ++row) {
      Image image = volume;
      image.data += row / out_rows * image_words;
      PoolRow(image, depth, height, width, row % out_rows / out_height, row % out_height, out_width,
              out + row * out_width * words);
    }
  });
}

void BinaryMaxPool::InferShape(const ShapeContext& context) {
  const std::optional<int64_t> ceil_mode = context.Int("ceil_mode");
  if (!ceil_mode) return;
  std::optional<Shape> shape = InferOutputPixels(context, RoundingOf(*ceil_mode));
  if (!shape) return;
  shape->Append(context.InputShape(0)->back());
  context.SetOutputShape(0, *shape, kOrtUint32);
}

}  // namespace bnn_deploy
