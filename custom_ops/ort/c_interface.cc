// The functions of bnn_deploy.h beside RegisterCustomOps.

#include <cstring>
#include <exception>

#include "include/bnn_deploy.h"
#include "kernels/dispatch.h"

const char* bnn_deploy_version(void) { return BNN_DEPLOY_VERSION; }

const char* bnn_deploy_isa(uint32_t index) {
  const auto& isas = bnn_deploy::AvailableIsas();
  return index < isas.size() ? isas[index]->name : nullptr;
}

const char* bnn_deploy_selected_isa(void) {
  try {
    return bnn_deploy::SelectIsa().name;
  } catch (const std::exception&) {
    return nullptr;
  }
}

uint64_t bnn_deploy_calls(const char* isa) {
  if (isa == nullptr) return 0;
  for (const bnn_deploy::Isa* available : bnn_deploy::AvailableIsas()) {
    if (std::strcmp(available->name, isa) == 0) return bnn_deploy::Calls(*available);
  }
  return 0;
}
