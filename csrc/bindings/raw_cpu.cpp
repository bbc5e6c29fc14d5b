#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "../cpu/bandwidth.h"
#include "../cpu/ceilings.h"
#include "../cpu/dispatch.h"
#include "../cpu/features.h"
#include "../cpu/parallel.h"
#include "buffers.h"
#include "module.h"

namespace fastcompress::bindings {
namespace {

namespace py = pybind11;

std::map<std::string, bool> features() {
    const CpuFeatures& f = cpu_features();
    return {{"avx2", f.avx2},
            {"avxvnni", f.avxvnni},
            {"avx512", f.avx512},
            {"avx512vnni", f.avx512vnni},
            {"avx512bf16", f.avx512bf16},
            {"amxint8", f.amxint8},
            {"amxbf16", f.amxbf16}};
}

std::vector<std::string> isa_names(bool supported_only) {
    std::vector<std::string> names;
    for (Isa isa : compiled_isas())
        if (!supported_only || isa_supported(isa)) names.emplace_back(isa_name(isa));
    return names;
}

py::list kernels() {
    py::list rows;
    for (Isa isa : compiled_isas()) {
        const KernelTable& t = table_for(isa);
        const auto add = [&](const char* family, const std::string& kernel, const char* tile) {
            py::dict row;
            row["family"] = family;
            row["isa"] = t.name;
            row["kernel"] = kernel + "_" + t.name;
            row["tile"] = tile;
            row["supported"] = isa_supported(isa);
            row["chosen"] = &t == &current_table();
            rows.append(row);
        };
        const WeightOnlyTable& w = t.weight_only;
        add("linear_w8a8", "linear_w8a8", t.gemm_name);
        add("conv2d_w8a8", "conv2d_w8a8", t.gemm_name);
        add("linear_w4", "linear_w4a8", t.nibbles.name);
        add("linear_w4", "linear_w4a16", w.name);
        add("linear_w8", "linear_w8a16", w.name);
        add("quantize", "quantize", "");
    }
    return rows;
}

void check_seconds(const char* function, double seconds) {
    if (!(seconds >= 0 && seconds <= 60))
        throw py::value_error(std::string(function) + ": seconds is " + std::to_string(seconds) + ", allowed: 0 to 60");
}

// The best of short measurements, without the GIL; between them Ctrl-C is heard.
template <class Measure>
double best_of_slices(double seconds, const Measure& measure) {
    constexpr double kSlice = 0.5;
    double best = 0;
    for (double left = seconds; left == seconds || left > 0; left -= kSlice) {
        {
            py::gil_scoped_release release;
            best = std::max(best, measure(std::min(left, kSlice)));
        }
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
    return best;
}

}  // namespace

void add_cpu(py::module_& m) {
    m.def("cpu_features", &features, "What the CPU and the operating system support.");
    m.def("isa_compiled", [] { return isa_names(false); }, "Names of the ISAs with kernels, weakest first.");
    m.def("isa_supported", [] { return isa_names(true); }, "Those of them that this machine runs.");
    m.def("isa", [] { return std::string(current_table().name); }, "The ISA in use.");
    m.def("set_isa", &set_isa, py::arg("name"),
          "Force an ISA by name; RuntimeError if unknown or unsupported. Blobs packed before must be packed again.");
    m.def("kernels", &kernels, "One dict per family and ISA: family, isa, kernel, tile, supported, chosen.");
    m.def("num_threads", &max_threads, "Threads that kernels use.");
    m.def(
        "set_num_threads",
        [](int n) {
            if (n < 1) throw py::value_error("set_num_threads: n is " + std::to_string(n) + ", at least 1 is needed");
            set_max_threads(n);
        },
        py::arg("n"), "As torch.set_num_threads, for use without torch. ValueError below 1.");
    m.def("ceiling_kinds", &ceiling_kinds, "The kinds that ceiling() knows on this machine.");
    m.def(
        "ceiling",
        [](const std::string& kind, double seconds) {
            check_seconds("ceiling", seconds);
            return best_of_slices(seconds, [&](double slice) { return measure_ceiling(kind, slice); });
        },
        py::arg("kind"), py::arg("seconds") = 0.2,
        "Operations per second of a register-only loop on all threads; ValueError if this machine has no such unit.");
    m.def(
        "read_bandwidth",
        [](int64_t bytes, double seconds) {
            check_seconds("read_bandwidth", seconds);
            if (bytes < 4096)
                throw py::value_error("read_bandwidth: bytes is " + std::to_string(bytes) +
                                      ", at least 4096 are needed");
            return best_of_slices(seconds, [&](double slice) { return read_bandwidth(bytes, slice); });
        },
        py::arg("bytes"), py::arg("seconds") = 0.2, "Bytes per second that all threads read from a buffer of `bytes`.");
    m.def(
        "read_buffer",
        [](const py::object& data, int threads) {
            const Buffer buffer = input(data, {DType::u8}, "read_buffer", "data");
            const int team = checked_threads(threads, "read_buffer");
            py::gil_scoped_release release;
            return read_buffer(buffer.data(), buffer.size(), team);
        },
        py::arg("data"), py::arg("threads") = 0,
        "Read a uint8 array once and return a number that depends on it: what kernels bound by bandwidth are held "
        "against.");
}

}  // namespace fastcompress::bindings
