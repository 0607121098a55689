// The Python module mova_kernels._C. Importing it registers the library's operators as torch.ops.mova_kernels.*; it has no members.
#include <Python.h>

#include <torch/library.h>

#include "cpu_features.h"

// Raised with every change of an operator's schema: the Python side refuses a library that was built from other sources.
static int64_t interface() { return 5; }

TORCH_LIBRARY(mova_kernels, library) {
  library.def("interface() -> int", &interface);
  library.def("cpu_features() -> str[]", &mova::cpu_features);
}

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr,
  };
  return PyModule_Create(&definition);
}
