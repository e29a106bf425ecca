#include <limits>
#include <new>
#include <thread>

#include "base/scratch.h"
#include "check.h"
#include "conv_case.h"
#include "kernels/dispatch.h"

namespace bnn_deploy::tests {
namespace {

TEST(BuffersAreAlignedAndGrow) {
  Buffer<uint32_t> buffer(5, 7u);
  for (int64_t i = 0; i < 5; ++i) CHECK(buffer.data()[i] == 7);
  uint32_t* const small = buffer.Reserve(5);
  CHECK(small == buffer.data());
  for (const int64_t size : {1, 17, 1000, 100000}) {
    CHECK(reinterpret_cast<uintptr_t>(buffer.Reserve(size)) % 64 == 0);
    buffer.data()[size - 1] = 1;
  }
}

TEST(BuffersOfImpossibleSizesAreErrors) {
  constexpr int64_t kWraps = SIZE_MAX / sizeof(uint32_t) + uint64_t{1};
  for (const int64_t size : {std::numeric_limits<int64_t>::max(), int64_t{1} << 61, kWraps}) {
    bool caught = false;
    try {
      Buffer<uint32_t>().Reserve(size);
    } catch (const std::bad_alloc&) {
      caught = true;
    }
    CHECK(caught);
  }
}

TEST(BuffersCountTheirBytes) {
  const int64_t before = buffer_bytes;
  {
    Buffer<uint32_t> a(16, 0u);
    Buffer<uint8_t> b(1, 0);
    CHECK(buffer_bytes - before == 128);
    a.Reserve(32);
    CHECK(buffer_bytes - before == 192);
  }
  CHECK(buffer_bytes == before);
}

TEST(ScratchKeepsLittleAndReturnsMuch) {
  const int64_t before = buffer_bytes;
  Buffer<uint8_t> kept;
  uint8_t* first;
  {
    Scratch<uint8_t> scratch(&kept);
    first = scratch.Reserve(kMaxKeptBytes);
  }
  CHECK(buffer_bytes - before == kMaxKeptBytes);
  {
    Scratch<uint8_t> scratch(&kept);
    CHECK(scratch.Reserve(1) == first);
  }
  {
    Scratch<uint8_t> scratch(&kept);
    scratch.Reserve(kMaxKeptBytes + 1);
    CHECK(buffer_bytes - before > 2 * kMaxKeptBytes);
  }
  CHECK(buffer_bytes - before == kMaxKeptBytes);
}

// 6 MB of bits: more than a thread may keep, plan included.
constexpr int64_t kLittle = int64_t{4} << 20;

// The run of a large image gives back its copy of the input, on every way through the driver.
TEST(ALargeImageLeavesNothingBehind) {
  for (const Isa* isa : AvailableIsas()) {
    for (const Epilogue epilogue : {Epilogue::kFloat, Epilogue::kBits}) {
      const ConvCase large({32, 1, 1, kPadded3, kPadded3, {}}, 1, 1500, 1000);
      std::thread([&] {  // a thread that keeps nothing yet
        const ConvDriver driver = large.MakeDriver(*isa, epilogue);
        const int64_t before = buffer_bytes;
        large.Run(driver, epilogue);
        CHECK_IN(buffer_bytes - before < kLittle, large.Text(epilogue));
      })
          .join();
    }
  }
}

TEST(AThreadThatEndsReturnsWhatItKept) {
  const int64_t before = buffer_bytes;
  std::thread([] {
    const ConvCase small({32, 1, 1, kPadded3, kPadded3, {}}, 1, 20, 20);
    small.Run(*AvailableIsas().front(), Epilogue::kFloat);
    CHECK(buffer_bytes > 0);
  }).join();
  CHECK(buffer_bytes == before);
}

}  // namespace
}  // namespace bnn_deploy::tests
