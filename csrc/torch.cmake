# Where the torch of Python_EXECUTABLE has its headers and libraries: torch_include, torch_lib, and torch_abi, 1 for the C++11 ABI.
# torch's own CMake package insists on a CUDA toolkit whenever torch was built with CUDA; the CPU library needs only these.
execute_process(
  COMMAND ${Python_EXECUTABLE} -c "import torch; from torch.utils import cpp_extension as c; \
print(*c.include_paths(), sep=';'); print(*c.library_paths(), sep=';'); print(int(torch.compiled_with_cxx11_abi()))"
  OUTPUT_VARIABLE torch_facts OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE torch_status)
if(NOT torch_status EQUAL 0)
  message(FATAL_ERROR "${Python_EXECUTABLE} cannot import torch: install torch first, then build with --no-build-isolation")
endif()
string(REPLACE ";" "\\;" torch_facts "${torch_facts}")
string(REPLACE "\n" ";" torch_facts "${torch_facts}")
list(GET torch_facts 0 torch_include)
list(GET torch_facts 1 torch_lib)
list(GET torch_facts 2 torch_abi)
