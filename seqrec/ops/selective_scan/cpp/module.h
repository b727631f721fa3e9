// The build treats the library as a Python extension module, which puts the library beside the package's Python files.
// It is loaded through ctypes; where Python's headers are at hand it can be imported too, as an empty module.
#if defined(SCAN_MODULE) && defined(__has_include)
#if __has_include(<Python.h>)
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#define SCAN_JOIN(a, b) a##b
#define SCAN_INIT(name) SCAN_JOIN(PyInit_, name)
#define SCAN_TEXT(name) #name
#define SCAN_NAME(name) SCAN_TEXT(name)
PyMODINIT_FUNC SCAN_INIT(SCAN_MODULE)() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, SCAN_NAME(SCAN_MODULE), nullptr, -1, nullptr, nullptr,
                               nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
#endif
#endif
