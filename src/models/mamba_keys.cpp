#include "krait/models/mamba_keys.h"

#include "krait/models/architecture.h"

namespace krait::models {

nn::Mamba2Config mamba_keys(const JsonView& j, int64_t d_model) {
  nn::Mamba2Config m;
  const int64_t heads = j.integer("mamba_n_heads", 128);
  check_size("mamba_n_heads", heads, 1, 1 << 20);
  const Json* head = j.find("mamba_d_head");
  m.headdim = !head || head->is_string()  // "auto"
                  ? j.integer("mamba_d_ssm", expanded(j.number("mamba_expand", 2), d_model)) / heads
                  : j.integer("mamba_d_head");
  check_size("mamba_d_head", m.headdim, 1, 1 << 20);
  m.d_model = d_model;
  m.d_ssm = heads * m.headdim;
  m.d_state = j.integer("mamba_d_state", 256);
  m.groups = j.integer("mamba_n_groups", 1);
  m.d_conv = j.integer("mamba_d_conv", 4);
  m.conv_bias = j.boolean("mamba_conv_bias", true);
  m.in_bias = m.out_bias = j.boolean("mamba_proj_bias", false);
  read_dt_limits(j, "time_step_limit", m);
  return m;
}

void write_mamba_keys(OrderedJson& j, const nn::Mamba2Config& m) {
  j["mamba_n_heads"] = m.heads();
  j["mamba_d_head"] = m.headdim;
  j["mamba_d_state"] = m.d_state;
  j["mamba_n_groups"] = m.groups;
  j["mamba_d_conv"] = m.d_conv;
  j["mamba_expand"] = expansion(m.d_ssm, m.d_model);
  j["mamba_conv_bias"] = m.conv_bias;
  j["mamba_proj_bias"] = m.in_bias;
  j["time_step_limit"] = dt_limits(m);
}

}  // namespace krait::models
