// The answers of a collection of examples: classes by name or number, or numbers to be predicted.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "krait/base/json.h"

namespace krait {

// One answer as a line of a .jsonl ("label") or the name of a folder gives it.
struct Answer {
  std::string where;  // for messages
  std::string name;   // of the class, or
  int64_t number = -1;
};

// "label": a name, or a number from 0 on.
Answer read_answer(const JsonView& line);

// Turns answers into classes. Names are those known, or else, where none are known, the names that occur, in
// alphabetical order; they are returned in `names`, which stays empty where classes are numbered. Error for a
// name that is not known, and where some classes have names and others numbers.
std::vector<int32_t> classes_of(const std::vector<Answer>& answers,
                                std::vector<std::string>& names);

// Names for all classes of a model, of which the data has the first ones: "LABEL_7" for others, as Hugging Face. None where
// classes are numbered.
std::vector<std::string> names_of_all(std::vector<std::string> names, int64_t classes);

}  // namespace krait
