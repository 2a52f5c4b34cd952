#include "krait/tensor/cuda/counters.h"

#include <algorithm>
#include <set>
#include <vector>

#include "krait/tensor/cuda/check.h"

namespace krait::cuda {

namespace {

constexpr size_t kCounters = 4096;

using Nodes = std::vector<cudaGraphNode_t>;

Nodes nodes_of(cudaGraph_t graph, bool roots_alone) {
  const auto ask = [&](cudaGraphNode_t* to, size_t* n) {
    check(roots_alone ? cudaGraphGetRootNodes(graph, to, n) : cudaGraphGetNodes(graph, to, n),
          "reading a graph");
  };
  size_t n = 0;
  ask(nullptr, &n);
  Nodes nodes(n);
  ask(nodes.data(), &n);
  return nodes;
}

// What the node waits for, or who waits for it.
Nodes neighbours(cudaGraphNode_t node, bool before) {
  const auto ask = [&](cudaGraphNode_t* to, cudaGraphEdgeData* edges, size_t* n) {
    check(before ? cudaGraphNodeGetDependencies(node, to, edges, n)
                 : cudaGraphNodeGetDependentNodes(node, to, edges, n),
          "reading a graph");
  };
  size_t n = 0;
  ask(nullptr, nullptr, &n);
  Nodes nodes(n);
  std::vector<cudaGraphEdgeData> edges(n);
  ask(nodes.data(), edges.data(), &n);
  return nodes;
}

void order(cudaGraph_t graph, cudaGraphNode_t first, cudaGraphNode_t then) {
  check(cudaGraphAddDependencies(graph, &first, &then, nullptr, 1), "changing a graph");
}

// Takes a node out: who waited for it waits for what it waited for.
void remove(cudaGraph_t graph, cudaGraphNode_t node) {
  const Nodes after = neighbours(node, false);
  for (const cudaGraphNode_t a : neighbours(node, true))
    for (const cudaGraphNode_t b : after) order(graph, a, b);
  check(cudaGraphDestroyNode(node), "changing a graph");
}

}  // namespace

Counters::Counters(int device) : memory_({Device::cuda, device}, kCounters * kBytes) {}

void* Counters::next() { return memory_.data() + next_++ % kCounters * kBytes; }

void Counters::clear_first(cudaGraph_t graph) const {
  std::byte *const begin = memory_.data(), *const end = begin + kCounters * kBytes;
  std::set<std::byte*> cleared;
  for (const cudaGraphNode_t node : nodes_of(graph, false)) {
    cudaGraphNodeType type{};
    check(cudaGraphNodeGetType(node, &type), "reading a graph");
    if (type != cudaGraphNodeTypeMemset) continue;
    cudaMemsetParams p{};
    check(cudaGraphMemsetNodeGetParams(node, &p), "reading a graph");
    auto* const at = static_cast<std::byte*>(p.dst);
    const size_t bytes = p.width * p.elementSize;
    if (at < begin || at >= end || p.value != 0 || p.height > 1 || bytes > kBytes) continue;
    if (cleared.insert(at).second) remove(graph, node);  // of two that share one the second waits
  }
  if (cleared.empty()) return;
  cudaMemsetParams all{};
  all.dst = *cleared.begin();
  all.elementSize = 1;
  all.width = static_cast<size_t>(*cleared.rbegin() - *cleared.begin()) + kBytes;
  all.height = 1;
  const Nodes roots = nodes_of(graph, true);
  cudaGraphNode_t clear = nullptr;
  check(cudaGraphAddMemsetNode(&clear, graph, nullptr, 0, &all), "changing a graph");
  for (const cudaGraphNode_t root : roots) order(graph, clear, root);
}

}  // namespace krait::cuda
