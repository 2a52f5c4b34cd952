// Krait as a library: everything a program needs, by one include. The pieces are documented in the
// headers named here; docs/house.md has the map.
#pragma once
#include "krait/autograd/segment.h"
#include "krait/autograd/tape.h"
#include "krait/base/error.h"
#include "krait/base/threads.h"
#include "krait/base/version.h"
#include "krait/tensor/arena.h"
#include "krait/tensor/context.h"
#include "krait/tensor/memory.h"
#include "krait/tensor/tensor.h"
