// The activation functions of gate; see gate.h for their formulas.
#pragma once

namespace krait::ops {

enum class Gate { silu, sigmoid, gelu, gelu_tanh, relu, relu2 };

}  // namespace krait::ops
