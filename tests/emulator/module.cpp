// Python's view of the emulator. The operators register themselves when the module is loaded.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "grid.h"
#include "symbols.h"

namespace py = pybind11;
namespace emulator = dlv3p::emulator;

PYBIND11_MODULE(dlv3p_emulator, m) {
  m.doc() = "The CUDA kernels of the project on an emulated GPU";
  m.def("set_seed", &emulator::set_seed, py::arg("seed"),
        "Choose the order in which blocks and threads run.");
  m.def("launches", &emulator::launches,
        "Names of the kernels launched since the last reset, in order.");
  m.def("reset", &emulator::reset, "Forget the launches and go back to seed 0.");
  m.def(
      "_set_symbols",
      [](decltype(emulator::Symbols::functions) functions,
         decltype(emulator::Symbols::shared) shared) {
        emulator::set_symbols({std::move(functions), std::move(shared)});
      },
      py::arg("functions"), py::arg("shared"));
}
