// Classifies a picture by a converted model, without Python:
//
//   classify MODEL.onnx PICTURE [--runs N] [--threads N] [--bits]
//
// MODEL takes images as bytes (bnn-deploy convert --input uint8), or floats and says how images are
// normalised (convert --mean --std). PICTURE is a binary PGM or PPM file of the model's size, which
// every image tool writes. Prints the five likeliest classes, by the names that the model remembers
// (convert --classes), and the median time of N runs. The share of a class is the softmax of the
// scores, or the score itself where all of them are shares already: none below 0, and 1 together.
// --bits prints all outputs as the bits of their floats instead.

#include <onnxruntime_c_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "bnn_deploy.h"

namespace {

const OrtApi* ort = nullptr;

void Check(OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = ort->GetErrorMessage(status);
  ort->ReleaseStatus(status);
  throw std::runtime_error(message);
}

// What onnxruntime makes is released with what holds it.
template <typename T>
using Held = std::unique_ptr<T, void (*)(T*)>;

struct Picture {
  int64_t height, width, channels;
  std::vector<uint8_t> bytes;  // [height][width][channels]
};

// The next number of a PNM header, behind white space and comments.
int64_t HeaderNumber(std::istream& file) {
  while ((file >> std::ws).peek() == '#') file.ignore(1 << 20, '\n');
  int64_t number = 0;
  file >> number;
  return number;
}

Picture ReadPicture(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be read");
  std::string magic(2, '\0');
  file.read(magic.data(), 2);
  Picture picture{};
  picture.channels = magic == "P6" ? 3 : 1;
  picture.width = HeaderNumber(file);
  picture.height = HeaderNumber(file);
  const int64_t largest = HeaderNumber(file);
  file.get();
  constexpr int64_t kMost = 1 << 14;
  if ((magic != "P5" && magic != "P6") || largest != 255 || picture.width < 1 ||
      picture.height < 1 || picture.width > kMost || picture.height > kMost) {
    throw std::runtime_error(path + ": not a binary PGM or PPM file of 8 bits: convert it to one");
  }
  picture.bytes.resize(static_cast<size_t>(picture.height * picture.width * picture.channels));
  if (!file.read(reinterpret_cast<char*>(picture.bytes.data()),
                 static_cast<std::streamsize>(picture.bytes.size()))) {
    throw std::runtime_error(path + ": ends before its last pixel");
  }
  return picture;
}

// The strings of a JSON array, as Python writes it: "[\"cat\", \"dog\"]".
std::vector<std::string> JsonStrings(const std::string& text) {
  std::vector<std::string> found;
  bool inside = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '"') {
      inside = !inside;
      if (inside) found.emplace_back();
    } else if (inside) {
      if (text[i] == '\\' && i + 1 < text.size()) ++i;  // of names, only \" and \\ are written so
      found.back() += text[i];
    }
  }
  return found;
}

// The numbers of a key of a JSON object: of {"mean": [0.5, 0.4], "std": null}. None for null.
std::vector<float> JsonNumbers(const std::string& text, const std::string& key) {
  std::vector<float> found;
  const size_t start = text.find("\"" + key + "\": [");
  if (start == std::string::npos) return found;
  const char* at = text.c_str() + text.find('[', start);
  while (*at == '[' || *at == ',') {
    char* end = nullptr;
    found.push_back(static_cast<float>(std::strtod(at + 1, &end)));
    at = end;
  }
  return found;
}

// torchvision's Normalize, of each channel, or of all of them by one number.
struct Normalisation {
  std::vector<float> mean, std;
};

class Model {
 public:
  Model(const std::string& path, int threads) {
    OrtEnv* env = nullptr;
    Check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "classify", &env));
    env_.reset(env);
    OrtSessionOptions* options = nullptr;
    Check(ort->CreateSessionOptions(&options));
    const Held<OrtSessionOptions> held(options, ort->ReleaseSessionOptions);
    Check(ort->SetIntraOpNumThreads(options, threads));
    Check(RegisterCustomOps(options, OrtGetApiBase()));
    OrtSession* session = nullptr;
    Check(ort->CreateSession(env, path.c_str(), options, &session));
    session_.reset(session);
    OrtAllocator* allocator = nullptr;
    Check(ort->GetAllocatorWithDefaultOptions(&allocator));
    // Both names live as long as the program.
    Check(ort->SessionGetInputName(session, 0, allocator, &input_));
    Check(ort->SessionGetOutputName(session, 0, allocator, &output_));
    OrtMemoryInfo* memory = nullptr;
    Check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    memory_.reset(memory);
    const std::string steps = Metadata("bnn_deploy.preprocessing");
    normalisation_ = {JsonNumbers(steps, "mean"), JsonNumbers(steps, "std")};
    names_ = JsonStrings(Metadata("bnn_deploy.classes"));
    ReadShape(path);
  }

  // What to call a class.
  std::string Name(size_t index) const {
    return index < names_.size() ? names_[index] : "class " + std::to_string(index);
  }

  // The picture as the model's input: its bytes, or its floats as bytes.
  std::vector<uint8_t> Input(const Picture& picture) const {
    const std::vector<uint8_t> bytes = Arrange(picture);
    if (element_ == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8) return bytes;
    const size_t channels = static_cast<size_t>(picture.channels);
    for (const auto* numbers : {&normalisation_.mean, &normalisation_.std}) {
      if (numbers->size() > 1 && numbers->size() != channels) {
        throw std::runtime_error("the picture has " + std::to_string(channels) +
                                 " channels, and the model normalises " +
                                 std::to_string(numbers->size()));
      }
    }
    const bool last = ChannelsLast(picture);
    const auto of_channel = [&](const std::vector<float>& numbers, float otherwise, size_t i) {
      const size_t channel = last ? i % channels : i / (bytes.size() / channels);
      return numbers.empty() ? otherwise : numbers.size() == 1 ? numbers[0] : numbers[channel];
    };
    std::vector<float> floats(bytes.size());
    for (size_t i = 0; i < bytes.size(); ++i) {
      floats[i] =
          (static_cast<float>(bytes[i]) / 255.0f - of_channel(normalisation_.mean, 0.0f, i)) /
          of_channel(normalisation_.std, 1.0f, i);
    }
    const auto* const data = reinterpret_cast<const uint8_t*>(floats.data());
    return {data, data + floats.size() * sizeof(float)};
  }

  std::vector<float> Run(std::vector<uint8_t>* input) const {
    OrtValue* x = nullptr;
    Check(ort->CreateTensorWithDataAsOrtValue(memory_.get(), input->data(), input->size(), shape_,
                                              4, element_, &x));
    const Held<OrtValue> held_x(x, ort->ReleaseValue);
    OrtValue* y = nullptr;
    Check(ort->Run(session_.get(), nullptr, &input_, &x, 1, &output_, 1, &y));
    const Held<OrtValue> held_y(y, ort->ReleaseValue);
    OrtTensorTypeAndShapeInfo* info = nullptr;
    Check(ort->GetTensorTypeAndShape(y, &info));
    const Held<OrtTensorTypeAndShapeInfo> held_info(info, ort->ReleaseTensorTypeAndShapeInfo);
    size_t count = 0;
    Check(ort->GetTensorShapeElementCount(info, &count));
    void* data = nullptr;
    Check(ort->GetTensorMutableData(y, &data));
    const auto* const values = static_cast<const float*>(data);
    return {values, values + count};
  }

 private:
  bool ChannelsLast(const Picture& picture) const {
    return shape_[3] == picture.channels && shape_[1] == picture.height &&
           shape_[2] == picture.width;
  }

  // The picture in the model's layout.
  std::vector<uint8_t> Arrange(const Picture& picture) const {
    const bool last = ChannelsLast(picture);
    const bool first =
        shape_[1] == picture.channels && shape_[2] == picture.height && shape_[3] == picture.width;
    if (!last && !first) {
      throw std::runtime_error(
          "the picture has " + std::to_string(picture.height) + " x " +
          std::to_string(picture.width) + " pixels of " + std::to_string(picture.channels) +
          " channels, but the model takes [N, " + std::to_string(shape_[1]) + ", " +
          std::to_string(shape_[2]) + ", " + std::to_string(shape_[3]) + "]");
    }
    if (last) return picture.bytes;
    std::vector<uint8_t> planes;
    for (int64_t c = 0; c < picture.channels; ++c) {
      for (size_t i = static_cast<size_t>(c); i < picture.bytes.size();
           i += static_cast<size_t>(picture.channels)) {
        planes.push_back(picture.bytes[i]);
      }
    }
    return planes;
  }

  // What the model's metadata has of a key; "" if nothing.
  std::string Metadata(const char* key) const {
    OrtAllocator* allocator = nullptr;
    Check(ort->GetAllocatorWithDefaultOptions(&allocator));
    OrtModelMetadata* metadata = nullptr;
    Check(ort->SessionGetModelMetadata(session_.get(), &metadata));
    const Held<OrtModelMetadata> held(metadata, ort->ReleaseModelMetadata);
    char* value = nullptr;
    Check(ort->ModelMetadataLookupCustomMetadataMap(metadata, allocator, key, &value));
    const std::string text = value == nullptr ? "" : value;
    if (value != nullptr) Check(ort->AllocatorFree(allocator, value));
    return text;
  }

  void ReadShape(const std::string& path) {
    OrtTypeInfo* type = nullptr;
    Check(ort->SessionGetInputTypeInfo(session_.get(), 0, &type));
    const Held<OrtTypeInfo> held(type, ort->ReleaseTypeInfo);
    const OrtTensorTypeAndShapeInfo* info = nullptr;  // of the type info
    Check(ort->CastTypeInfoToTensorInfo(type, &info));
    size_t rank = 0;
    Check(ort->GetTensorElementType(info, &element_));
    Check(ort->GetDimensionsCount(info, &rank));
    const bool known = !normalisation_.mean.empty() || !normalisation_.std.empty();
    if (rank != 4 || (element_ != ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 &&
                      (element_ != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || !known))) {
      throw std::runtime_error(path +
                               ": does not say how images become its input: convert it with "
                               "--input uint8, or with --mean and --std");
    }
    Check(ort->GetDimensions(info, shape_, 4));
    shape_[0] = 1;
  }

  Held<OrtEnv> env_{nullptr, ort->ReleaseEnv};
  Held<OrtSession> session_{nullptr, ort->ReleaseSession};
  Held<OrtMemoryInfo> memory_{nullptr, ort->ReleaseMemoryInfo};
  char* input_ = nullptr;
  char* output_ = nullptr;
  int64_t shape_[4] = {};
  ONNXTensorElementDataType element_{};
  Normalisation normalisation_;
  std::vector<std::string> names_;
};

void PrintBits(const std::vector<float>& values) {
  for (const float value : values) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    std::printf("%08x\n", bits);
  }
}

void PrintBest(const Model& model, const std::vector<float>& scores) {
  const auto below_0 = [](float score) { return score < 0; };
  double total = std::accumulate(scores.begin(), scores.end(), 0.0);
  const bool shares =
      std::none_of(scores.begin(), scores.end(), below_0) && std::abs(total - 1) < 1e-3;
  const float most = *std::max_element(scores.begin(), scores.end());
  const auto power = [&](float score) { return std::exp(static_cast<double>(score - most)); };
  if (!shares) {
    total = 0;
    for (const float score : scores) total += power(score);
  }
  std::vector<size_t> classes(scores.size());
  std::iota(classes.begin(), classes.end(), size_t{0});
  const size_t count = std::min(classes.size(), size_t{5});
  std::partial_sort(classes.begin(), classes.begin() + static_cast<std::ptrdiff_t>(count),
                    classes.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
  for (size_t i = 0; i < count; ++i) {
    const float score = scores[classes[i]];
    const double share = shares ? static_cast<double>(score) : power(score) / total;
    std::printf("%-20s score %9.4f   %5.1f %%\n", model.Name(classes[i]).c_str(),
                static_cast<double>(score), 100 * share);
  }
}

int Main(const std::vector<std::string>& arguments) {
  std::vector<std::string> files;
  int runs = 100, threads = 1;
  bool bits = false;
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--bits") {
      bits = true;
    } else if ((arguments[i] == "--runs" || arguments[i] == "--threads") &&
               i + 1 < arguments.size()) {
      (arguments[i] == "--runs" ? runs : threads) =
          std::max(std::atoi(arguments[i + 1].c_str()), 1);
      ++i;
    } else {
      files.push_back(arguments[i]);
    }
  }
  if (files.size() != 2) {
    std::fprintf(stderr,
                 "usage: classify MODEL.onnx PICTURE.ppm [--runs N] [--threads N] [--bits]\n");
    return 2;
  }
  ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (ort == nullptr) {
    throw std::runtime_error(std::string("onnxruntime ") + OrtGetApiBase()->GetVersionString() +
                             " is too old");
  }
  const Model model(files[0], threads);
  std::vector<uint8_t> bytes = model.Input(ReadPicture(files[1]));
  const std::vector<float> scores = model.Run(&bytes);
  if (bits) {
    PrintBits(scores);
    return 0;
  }
  PrintBest(model, scores);
  std::vector<double> times;
  for (int i = 0; i < runs; ++i) {
    const auto start = std::chrono::steady_clock::now();
    model.Run(&bytes);
    times.push_back(
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
            .count());
  }
  std::nth_element(times.begin(), times.begin() + runs / 2, times.end());
  std::printf("%.3f ms, the median of %d runs; bnn_deploy %s, %s kernels\n",
              times[static_cast<size_t>(runs / 2)], runs, bnn_deploy_version(),
              bnn_deploy_selected_isa());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return Main({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
