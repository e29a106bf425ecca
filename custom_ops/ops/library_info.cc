#include "ops/library_info.h"

#include <cstring>
#include <string>

#include "drivers/direct/rows.h"
#include "kernels/dispatch.h"

namespace bnn_deploy {

const OpSchema LibraryInfo::kSchema = {"LibraryInfo", {kOrtInt64}, {kOrtUint8}};

void LibraryInfo::Compute(const Context& context) const {
  const auto quoted = [](const char* text) { return "\"" + std::string(text) + "\""; };
  std::string isas, calls;
  for (const Isa* isa : AvailableIsas()) {
    const char* const separator = isas.empty() ? "" : ", ";
    isas += separator + quoted(isa->name);
    calls += separator + quoted(isa->name) + ": " + std::to_string(Calls(*isa));
  }
  const IntegerBits bits = CountedIntegerBits();
  const std::string json = "{\"version\": " + quoted(BNN_DEPLOY_VERSION) + ", \"isas\": [" + isas +
                           "], \"selected\": " + quoted(SelectIsa().name) + ", \"calls\": {" +
                           calls + "}, \"integer_bits\": " + std::to_string(bits.all) +
                           ", \"undecided_bits\": " + std::to_string(bits.undecided) + "}";
  Shape shape;
  shape.Append(static_cast<int64_t>(json.size()));
  std::memcpy(context.Output(0, shape), json.data(), json.size());
}

}  // namespace bnn_deploy
