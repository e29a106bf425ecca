// An array with the alignment that the micro-kernels ask for. It grows and never shrinks.

#ifndef BNN_DEPLOY_BASE_BUFFER_H_
#define BNN_DEPLOY_BASE_BUFFER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

namespace bnn_deploy {

// The bytes that all buffers of the process hold.
inline std::atomic<int64_t> buffer_bytes{0};

template <typename T>
class Buffer {
  static_assert(std::is_trivial_v<T>);

 public:
  Buffer() = default;
  Buffer(int64_t size, T value) {
    T* const data = Reserve(size);
    for (int64_t i = 0; i < size; ++i) data[i] = value;
  }

  // At least `size` elements; their values are undefined after growth.
  T* Reserve(int64_t size) {
    if (size > capacity_) {
      // A size_t of 32 bits would wrap.
      if (static_cast<uint64_t>(size) > (PTRDIFF_MAX - kAlignment) / sizeof(T))
        throw std::bad_alloc();
      const size_t bytes =
          (static_cast<size_t>(size) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
      data_.reset();
      capacity_ = 0;
      void* const data = ::operator new(bytes, std::align_val_t{kAlignment});
      buffer_bytes.fetch_add(static_cast<int64_t>(bytes), std::memory_order_relaxed);
      data_ = {static_cast<T*>(data), Free{static_cast<int64_t>(bytes)}};
      capacity_ = size;
    }
    return data_.get();
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }

 private:
  static constexpr size_t kAlignment = 64;
  struct Free {
    int64_t bytes;
    void operator()(T* data) const {
      buffer_bytes.fetch_sub(bytes, std::memory_order_relaxed);
      ::operator delete(data, std::align_val_t{kAlignment});
    }
  };
  std::unique_ptr<T[], Free> data_;
  int64_t capacity_ = 0;
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_BASE_BUFFER_H_
