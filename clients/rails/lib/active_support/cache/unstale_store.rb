# frozen_string_literal: true

require "active_support"
require "active_support/cache"
require "active_support/cache/redis_cache_store"
require "securerandom"

module ActiveSupport
  module Cache
    # Rails' RedisCacheStore that cannot put stale data back, for applications that keep their reads as they are:
    #
    #   config.cache_store = :unstale_store, { url: ENV["REDIS_URL"], lease: 5, wait: 0.2 }
    #
    # A read that finds nothing takes a lease, which is remembered for the thread or fiber and the key; the write that follows, as in
    # +fetch+, is a fill, and is refused if the key was deleted in between. The protocol: docs/readers.md.
    # With <tt>raw: true</tt>, as for counters, the store is Rails' own.
    class UnstaleStore < RedisCacheStore
      PREFIX = "unstale:lease:".b.freeze
      LENGTH = PREFIX.bytesize + 32

      FILL = <<~LUA
        if redis.call('getrange', KEYS[1], 0, 45) == ARGV[1] then
          if ARGV[3] == '' then return redis.call('set', KEYS[1], ARGV[2]) end
          return redis.call('set', KEYS[1], ARGV[2], 'px', ARGV[3])
        end
      LUA

      TAKE_EARLY = <<~LUA
        local v = redis.call('get', KEYS[1])
        if v and string.sub(v, 1, 14) ~= 'unstale:lease:' then
          return redis.call('set', KEYS[1], ARGV[1] .. '=' .. v, 'keepttl')
        end
      LUA

      # One hit in so many asks for the key's remaining time along with its value: a hot key has hits enough.
      SAMPLE = 16

      # A miss that no write followed is forgotten after this long. Until then a late write is refused.
      REMEMBERED_SECONDS = 60

      Counters = Struct.new(:hits, :misses, :waits, :timeouts, :fills, :refused, :errors, :unleased)

      attr_reader :counters

      # +strict+ refuses a write that no miss came before. Else it is written as it is, and is not protected.
      def initialize(lease: 5, wait: 0.2, early: 1, strict: false, **options)
        super(**options)
        @lease, @wait, @early, @strict = lease, wait, early, strict
        @load_seconds = 0.05 # until a load was seen
        @counters = Counters.new(*[0] * 8)
        @set_nx_get = true # until the server says that it knows no such thing
      end

      private
        # Fiber-local, as Thread#[] is.
        def misses
          Thread.current[:"unstale_misses_#{object_id}"] ||= {}
        end

        # nil as a lease: somebody else loads, or Redis failed, so nothing may be stored.
        def remember(key, lease)
          now = clock
          misses.delete_if { |_, (_, at)| now - at > REMEMBERED_SECONDS }
          misses[key] = [lease, now]
          nil
        end

        def clock
          Process.clock_gettime(Process::CLOCK_MONOTONIC)
        end

        def read_entry(key, **options)
          return super if options[:raw]
          remember(key, nil)
          failsafe(:read_entry) { seek(key) }
        end

        def seek(key)
          payload, lease = look(key)
          return remember(key, lease) if lease
          deadline = nil
          pause = 0.002
          loop do
            entry = payload && entry_of(payload)
            if entry&.expired?
              # By the clock of whoever wrote it. Rails would call it a miss, but one without a lease.
              redis.with { |c| c.unlink(key) }
              entry = payload = nil
            end
            if entry
              counters.hits += 1
              misses.delete(key)
              return entry
            end
            if payload.nil?
              lease = new_lease
              payload = take(key, lease)
              if payload.nil?
                counters.misses += 1
                return remember(key, lease)
              end
              next
            end
            counters.waits += 1 unless deadline
            deadline ||= clock + @wait
            if clock >= deadline
              counters.timeouts += 1
              return nil
            end
            sleep(pause * (0.5 + rand))
            pause = [pause * 1.5, 0.05].min
            payload = redis.with { |c| c.get(key) }
          end
        end

        # What is there, and the lease of a load that should begin before it expires.
        def look(key)
          return redis.with { |c| c.get(key) } if @early.zero? || rand >= 1.0 / SAMPLE
          payload, left_ms = redis.with { |c| c.pipelined { |p| p.get(key); p.pttl(key) } }
          # XFetch (Vattani et al. 2015), for a reader of which one hit in SAMPLE draws.
          ahead = @load_seconds * @early * (Math.log(SAMPLE) - Math.log(1 - rand))
          ahead = [ahead, @options[:expires_in].to_f / 10].min if @options[:expires_in] # a load as slow as that would never end
          return payload if payload.nil? || lease?(payload) || left_ms.negative? || left_ms > ahead * 1000
          lease = new_lease
          [payload, redis.with { |c| c.eval(TAKE_EARLY, keys: [key], argv: [lease]) } && lease]
        end

        # Never one for two fills: the first could store what it loaded before a delete under the second's lease.
        def new_lease
          PREFIX + SecureRandom.hex(16)
        end

        # Nothing for a lease.
        def entry_of(payload)
          return deserialize_entry(payload, raw: false) unless lease?(payload)
          deserialize_entry(payload.byteslice(LENGTH + 1..), raw: false) if payload.bytesize > LENGTH
        end

        def lease?(payload)
          payload.byteslice(0, PREFIX.bytesize) == PREFIX
        end

        # nil if the lease is ours now, else what is there.
        def take(key, lease)
          ms = [(@lease * 1000).to_i, 1].max
          if @set_nx_get
            begin
              there = redis.with { |c| c.call("SET", key, lease, "NX", "GET", "PX", ms) }
              return there == lease ? nil : there
            rescue ::Redis::CommandError => error
              raise unless error.message.include?("syntax") # Redis 6.2
              @set_nx_get = false
            end
          end
          loop do
            taken, there = redis.with { |c| c.pipelined { |p| p.set(key, lease, nx: true, px: ms); p.get(key) } }
            return nil if taken || there == lease
            return there if there
          end
        end

        def write_entry(key, entry, raw: false, unless_exist: false, expires_in: nil, race_condition_ttl: nil, **options)
          others = { raw: raw, unless_exist: unless_exist, expires_in: expires_in, **options }
          return super(key, entry, **others) if raw
          lease, since = miss = misses.delete(key)
          unless miss || @strict
            counters.unleased += 1
            return super(key, entry, **others)
          end
          @load_seconds += 0.2 * (clock - since - @load_seconds) if miss
          unless lease
            counters.refused += 1
            return false
          end
          failsafe(:write_entry, returning: false) { fill(key, lease, serialize_entry(entry, raw: false), expires_in) }
        end

        def fill(key, lease, payload, expires_in)
          ms = expires_in ? [(1000 * expires_in.to_f).ceil, 1].max : ""
          stored = redis.with { |c| c.eval(FILL, keys: [key], argv: [lease, payload, ms]) }
          counters[stored ? :fills : :refused] += 1
          !!stored
        end

        # Waits for nobody: what others load is missing, and is not stored.
        def read_multi_mget(*names)
          options = merged_options(names.extract_options!)
          return super(*names, options) if options[:raw] || names.empty?
          keys = names.to_h { |name| [name, normalize_key(name, options)] }
          found = failsafe(:read_multi_mget, returning: []) { redis.with { |c| c.mget(*keys.values) } }
          names.zip(found).each_with_object({}) do |(name, payload), results|
            key = keys[name]
            lease = new_lease
            remember(key, nil)
            failsafe(:read_multi_mget) do
              payload ||= take(key, lease)
              next remember(key, lease) if payload.nil?
              entry = entry_of(payload)
              next if entry.nil? || entry.expired? || entry.mismatched?(normalize_version(name, options))
              misses.delete(key)
              results[name] = entry.value
            end
          end
        end

        def write_multi_entries(entries, **options)
          entries.each { |key, entry| write_entry(key, entry, **options) }
        end

        def failsafe(method, returning: nil)
          super(method, returning: returning) do
            yield
          rescue ::Redis::BaseError
            counters.errors += 1
            raise
          end
        end
    end
  end
end
