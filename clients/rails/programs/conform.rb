# frozen_string_literal: true

# The store as a program for clients/conformance, with an application's own `fetch`.
$LOAD_PATH.unshift File.expand_path("../lib", __dir__)
require "json"
require "active_support"
require "active_support/cache"

$stdout.sync = true
OUT = Mutex.new
def say(**words)
  OUT.synchronize { puts JSON.generate(words) }
end

class Failed < StandardError; end

answers = {}
store = ttl = nil
load = lambda do |id|
  answers[id] = Queue.new
  say(event: "load", id: id)
  words = answers[id].pop
  raise Failed unless words.key?("value")
  words["value"]
end

$stdin.each_line do |line|
  words = JSON.parse(line)
  case words["do"]
  when "open"
    ttl = words["ttl"]
    times = words.slice("lease", "wait", "early").transform_keys(&:to_sym)
    store = ActiveSupport::Cache.lookup_store(:unstale_store, url: words["redis"], **times)
    say(event: "ready")
  when "get"
    Thread.new do
      id = words["id"]
      say(event: "got", id: id, value: store.fetch(words["key"], expires_in: ttl) { load.call(id) })
    rescue Failed
      say(event: "failed", id: id)
    end
  else
    answers[words["id"]] << words
  end
end
