// The build treats the library as a Python extension module, which puts it into the folder of the Python files. It is
// loaded through ctypes; if Python's headers are installed, it can also be imported, as an empty module.
#if defined(KERNEL_MODULE) && defined(__has_include)
#if __has_include(<Python.h>)
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#define KERNEL_JOIN(a, b) a##b
#define KERNEL_INIT(name) KERNEL_JOIN(PyInit_, name)
#define KERNEL_TEXT(name) #name
#define KERNEL_NAME(name) KERNEL_TEXT(name)
PyMODINIT_FUNC KERNEL_INIT(KERNEL_MODULE)() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, KERNEL_NAME(KERNEL_MODULE), nullptr, -1, nullptr, nullptr,
                               nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
#endif
#endif
