# frozen_string_literal: true

Gem::Specification.new do |spec|
  spec.name = "unstale-rails"
  spec.version = "0.1.0"
  spec.summary = "Rails' Redis cache store that cannot put stale data back: the readers' half of unstale"
  spec.licenses = ["MIT", "Apache-2.0"]
  spec.metadata = { "source_code_uri" => "https://github.com/unstale/unstale" }
  spec.authors = ["The unstale developers"]
  spec.files = Dir["lib/**/*.rb", "README.md"]
  spec.required_ruby_version = ">= 3.0"
  spec.add_dependency "activesupport", ">= 6.1"
  spec.add_dependency "redis", ">= 4.3"
end
