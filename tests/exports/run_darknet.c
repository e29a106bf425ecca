// Runs a network in Darknet on a CPU and prints what layers computed; make_darknet.py compiles it
// against libdarknet.
//
//   run_darknet CFG WEIGHTS INPUT LAYER...
//
// INPUT holds one image, float32. The layers' outputs are written to standard output, float32, one
// behind the other; what Darknet prints there goes to standard error.
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "darknet.h"

// These are exported by the library, but its header does not have them.
extern int gpu_index;
void calculate_binary_weights(network net);
network* load_network_custom(char* cfg, char* weights, int clear, int batch);

int main(int count, char** arguments) {
  int out = dup(1);
  dup2(2, 1);
  gpu_index = -1;  // as darknet's main() does where there is no GPU
  network* net = load_network_custom(arguments[1], arguments[2], 0, 1);  // BatchNorm is folded here
  calculate_binary_weights(*net);  // as `darknet detector test` does
  float* input = calloc(net->inputs, sizeof(float));
  FILE* file = fopen(arguments[3], "rb");
  if (file == NULL || fread(input, sizeof(float), net->inputs, file) != (size_t)net->inputs)
    return 1;
  network_predict(*net, input);
  for (int i = 4; i < count; ++i) {
    layer wanted = net->layers[atoi(arguments[i])];
    ssize_t bytes = wanted.outputs * sizeof(float);
    if (write(out, wanted.output, bytes) != bytes) return 1;
  }
  return 0;
}
