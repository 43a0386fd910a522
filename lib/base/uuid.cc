#include "lib/base/uuid.h"

#include <uuid/uuid.h>

namespace sluice {

Uuid Uuid::random() {
  Uuid uuid;
  uuid_generate_random(uuid.bytes.data());
  return uuid;
}

std::optional<Uuid> Uuid::parse(std::string_view text) {
  Uuid uuid;
  const std::string terminated(text);
  if (text.size() != 36 || uuid_parse(terminated.c_str(), uuid.bytes.data()) != 0) return std::nullopt;
  return uuid;
}

std::string Uuid::to_string() const {
  std::string text(36, '\0');
  uuid_unparse_lower(bytes.data(), text.data());
  return text;
}

}  // namespace sluice
