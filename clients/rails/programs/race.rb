# frozen_string_literal: true

# Readers in Rails' cache, for clients/race: `race.rb client | plain race`.
$LOAD_PATH.unshift File.expand_path("../lib", __dir__)
require "active_support"
require "active_support/cache"
require "pg"

kind, = ARGV
keys, tasks = Integer(ENV.fetch("RACE_KEYS", 50)), Integer(ENV.fetch("RACE_TASKS", 4))
ttl = Float(ENV.fetch("RACE_TTL", 3600))
store = ActiveSupport::Cache.lookup_store(kind == "plain" ? :redis_cache_store : :unstale_store, url: ENV.fetch("REDIS_URL"))
log = File.open("#{ENV.fetch("RACE_LOG")}.#{Process.pid}", "w")
mutex = Mutex.new

threads = Array.new(tasks) do
  Thread.new do
    database = PG.connect(ENV.fetch("DATABASE_URL"))
    loop do
      id = rand(keys)
      begun = Process.clock_gettime(Process::CLOCK_REALTIME, :nanosecond)
      value = store.fetch("item:#{id}", expires_in: ttl) do
        version = database.exec_params("select version from items where id = $1", [id]).getvalue(0, 0).to_i
        sleep(rand < 0.9 ? rand * 0.02 : rand * 0.2)
        { "id" => id, "version" => version, "text" => "x" * 100 }
      end
      mutex.synchronize { log.write("#{begun} #{id} #{value["version"]}\n") }
    end
  end
end
threads.each(&:join)
