#include "krait/data/labels.h"

#include <map>
#include <set>

#include "krait/base/error.h"

namespace krait {

Answer read_answer(const JsonView& line) {
  Answer a;
  a.where = line.where();
  const Json& label = line.at("label");
  if (label.is_string()) {
    a.name = label.get<std::string>();
    if (a.name.empty()) line.wrong("label", "the name of a class");
    return a;
  }
  if (!label.is_number_integer()) line.wrong("label", "the name of a class, or its number");
  a.number = label.get<int64_t>();
  if (a.number < 0 || a.number >= INT32_MAX) line.wrong("label", "the number of a class");
  return a;
}

std::vector<int32_t> classes_of(const std::vector<Answer>& answers,
                                std::vector<std::string>& names) {
  if (names.empty()) {
    std::set<std::string> occurring;
    for (const Answer& a : answers)
      if (!a.name.empty()) occurring.insert(a.name);
    names.assign(occurring.begin(), occurring.end());
    for (const Answer& a : answers)
      require(names.empty() || a.number < 0,
              "{}: this class is a number, {}, and others have names: expected one or the other",
              a.where, a.number);
  }
  std::map<std::string_view, int32_t> known;
  for (const std::string& name : names) known.emplace(name, static_cast<int32_t>(known.size()));
  std::vector<int32_t> classes;
  for (const Answer& a : answers) {
    if (a.number >= 0) {
      classes.push_back(static_cast<int32_t>(a.number));
      continue;
    }
    const auto found = known.find(a.name);
    require(found != known.end(), "{}: the model has no class \"{}\" among its {}", a.where, a.name,
            names.size());
    classes.push_back(found->second);
  }
  return classes;
}

std::vector<std::string> names_of_all(std::vector<std::string> names, int64_t classes) {
  if (names.empty()) return names;
  for (auto i = static_cast<int64_t>(names.size()); i < classes; ++i)
    names.push_back(fmt::format("LABEL_{}", i));
  return names;
}

}  // namespace krait
