# frozen_string_literal: true

# The worker library for Ruby programs, in Ruby alone:
#
#     require "poolparty"
#
#     Poolparty.serve { |request| "hello\n" }
#
# Runs in the child: requests arrive as frames on descriptor 0, answers leave on descriptor 3, stdout and stderr are
# free for printing (docs/worker-protocol.md). What is read beyond one request's end is kept by Ruby's IO object.
module Poolparty
  VERSION = "0.1.0"

  # The server broke the protocol. Not a StandardError: no `rescue` of a handler's must swallow it.
  class FrameError < Exception; end

  # The server has gone: nobody is left to be answered. Not a StandardError either.
  class ServerGone < Exception; end

  # Answer requests with handler.call(request), or with the block, until the server closes the pipe; then return.
  #
  # The handler returns a String (200; text/plain; charset=utf-8, or application/octet-stream if its encoding is
  # binary) or [status, headers, body]: headers a Hash of names to a String or an Array of Strings, or nil; body a
  # String, nil, or whatever has `each` and yields Strings, which is sent piece by piece where the server can take
  # it so, and collected where it cannot; a body's `close` is called. `each` ends early, by a `break`, when the client
  # is found to have left. What a handler raises is written to stderr
  # with its trace and answered `500 internal server error`; the process lives on.
  #
  # health_check.call is called now and then while no request runs. If it raises, this process is unwell and will be
  # replaced.
  def self.serve(handler = nil, health_check: nil, &block)
    Worker.new(handler || block || raise(ArgumentError, "serve needs a handler or a block"), health_check).run
  end

  # A request's header fields, by their names as the server wrote them (`User-Agent`); a lookup ignores case. Of a
  # field that was sent several times the values are joined by ", " (Cookie: "; ").
  class Headers
    include Enumerable

    def initialize(fields = {})
      @fields = fields
    end

    def [](name)
      @fields[name] || lower[name.downcase]
    end

    def fetch(name, *default, &block)
      self[name] || @fields.fetch(name, *default, &block)
    end

    def key?(name)
      !self[name].nil?
    end

    def each(&block)
      @fields.each(&block)
    end

    def to_h
      @fields.dup
    end

    private

    def lower
      @lower ||= @fields.transform_keys(&:downcase)
    end
  end

  # One HTTP request.
  #
  #   request_method   "GET", …
  #   uri              absolute: "http://example.org/path?query"
  #   path             the uri's, as it was sent: percent-encoded
  #   query_string     the uri's, without "?"; "" if there is none
  #   headers          Headers
  #   body             a binary String
  #   remote_address   "host:port" ("[::1]:4711" for IPv6)
  class Request
    attr_reader :request_method, :uri, :headers, :body, :remote_address

    def initialize(request_method: "GET", uri: "http://localhost/", headers: {}, body: "",
                   remote_address: "127.0.0.1:0")
      @request_method = request_method
      @uri = uri
      @headers = Headers.new(headers)
      @body = body
      @remote_address = remote_address
    end

    def path
      split unless @path
      @path
    end

    def query_string
      split unless @path
      @query_string
    end

    def inspect
      "#<#{self.class} #{request_method} #{uri}>"
    end

    private

    def split
      target, @query_string = @uri.split("?", 2)
      @query_string ||= ""
      @path = target.sub(%r{\A[^/]*://[^/]*}, "")
      @path = "/" if @path.empty?
    end
  end

  # Takes a frame's payload apart.
  class Reader
    def initialize(payload)
      @payload = payload
      @at = 0
    end

    def uint
      byte = @payload.getbyte(@at) or broken
      @at += 1
      return byte if byte < 128

      number = byte & 127
      shift = 7
      loop do
        byte = @payload.getbyte(@at) or broken
        @at += 1
        number |= (byte & 127) << shift
        return number if byte < 128

        shift += 7
        broken if shift > 63
      end
    end

    def data
      size = uint
      piece = @payload.byteslice(@at, size)
      broken unless piece && piece.bytesize == size
      @at += size
      piece
    end

    def string
      data.force_encoding(Encoding::UTF_8)
    end

    def request
      remote_address = string
      uri = string
      request_method = string
      headers = {}
      uint.times do
        name = string
        headers[name] = string
      end
      Request.new(remote_address: remote_address, uri: uri, request_method: request_method, headers: headers,
                  body: data)
    end

    def end
      raise FrameError, "bytes are left behind the message" unless @at == @payload.bytesize
    end

    private

    def broken
      raise FrameError, "a message goes on beyond its frame"
    end
  end

  # What stands in the pipe behind the request that runs. `io` must not be read otherwise until it is put back.
  class Behind # :nodoc:
    def initialize(io)
      @io = io
      @data = "".b
      @at = 0 # where the next frame begins
    end

    # Whether the server does not want the stream any more, or is gone. Waits for nothing.
    def cancelled?
      @data << @io.readpartial(Worker::READ_SIZE) while IO.select([@io], nil, nil, 0)
      while @data.bytesize >= @at + 5
        return true if @data.getbyte(@at + 4) == Worker::STREAM_CANCEL

        @at += 4 + @data.byteslice(@at, 4).unpack1("V")
      end
      false
    rescue EOFError
      true
    end

    def put_back
      @io.ungetbyte(@data) unless @data.empty?
    end
  end

  # The loop that answers requests.
  class Worker # :nodoc:
    HTTP_REQUEST = 0
    HEALTH_CHECK_REQUEST = 1
    STREAM_CANCEL = 3
    HTTP_RESPONSE = 0
    READY = 1
    HEALTH_REPLY = 2
    RESPONSE_START = 3
    RESPONSE_CHUNK = 4
    RESPONSE_END = "\x01\x00\x00\x00\x05".b.freeze

    READ_SIZE = 65_536 # a pipe's usual capacity: one read takes all there is
    MAX_FRAME_SIZE = 0x7fffffff
    MAX_MESSAGE_SIZE = 1000 # of a health reply: a line of the log
    LARGE_BODY = 65_536 # from here on two pieces in one writev beat joining them, which copies the body

    def initialize(handler, health_check)
      @handler = handler
      @health_check = health_check
    end

    def run
      take_descriptors
      prepare_process
      offered = ENV.fetch("POOLPARTY_FEATURES", "").split(",")
      used = offered.include?("ready") ? offered & %w[health-reply stream stream-cancel stack] : []
      used.delete("stack") unless used.include?("stack") && shows_stack?
      @replies = used.include?("health-reply")
      @streams = used.include?("stream")
      used.delete("stream-cancel") unless @streams
      @cancels = used.include?("stream-cancel")
      say_ready(used) if offered.include?("ready")
      while (payload = next_payload)
        take(Reader.new(payload))
      end
    rescue ServerGone
      nil
    rescue FrameError => e
      abort "poolparty: #{e.message}"
    end

    private

    def next_payload
      size = @requests.read(4)
      return unless size && size.bytesize == 4

      size = size.unpack1("V")
      payload = @requests.read(size)
      payload if payload && payload.bytesize == size
    end

    def take(reader)
      case tag = reader.uint
      when HTTP_REQUEST
        request = reader.request
        reader.end
        answer(request)
      when HEALTH_CHECK_REQUEST
        reader.end
        check_health
      when STREAM_CANCEL
        reader.end # of a stream that has ended meanwhile
      else
        raise FrameError, "a request of a kind this library does not know (#{tag})"
      end
    end

    def answer(request)
      begin
        head, body = response(@handler.call(request))
        frame = framed(head, body) if body.is_a?(String)
      rescue StandardError, ScriptError, SystemStackError => e
        report("#{request.request_method} #{request.uri.inspect} failed", e)
        frame = FAILED
      end
      frame ? write(*frame) : stream(request, head, body)
    end

    # The bytes between the response's tag and its body, and the body: a String, or what has `each`.
    def response(answer)
      if answer.is_a?(String)
        return [answer.encoding == Encoding::BINARY ? OCTETS : TEXT, answer]
      elsif !(answer.is_a?(Array) && answer.size == 3)
        raise TypeError, "a handler returns a String or [status, headers, body], not #{answer.inspect[0, 200]}"
      end

      status, headers, body = answer
      unless status.is_a?(Integer) && status.between?(200, 599)
        raise TypeError, "a response's status is an Integer from 200 to 599, not #{status.inspect[0, 200]}"
      end
      unless body.nil? || body.is_a?(String) || body.respond_to?(:each)
        raise TypeError, "a response's body is a String or has `each`, not #{body.inspect[0, 200]}"
      end

      head = uint(status) << encode_headers(headers)
      body = collect(body) unless body.nil? || body.is_a?(String) || @streams
      [head, body || ""]
    end

    def encode_headers(headers)
      return "\0".b if headers.nil?
      raise TypeError, "a response's headers are a Hash, not #{headers.inspect[0, 200]}" unless headers.is_a?(Hash)

      out = uint(headers.size)
      headers.each do |name, value|
        raise TypeError, "a response header's name is a String, not #{name.inspect[0, 200]}" unless name.is_a?(String)

        values = value.is_a?(Array) ? value : [value]
        unless values.all?(String)
          raise TypeError, "the response header #{name.inspect} is a String or an Array of Strings, " \
                           "not #{value.inspect[0, 200]}"
        end
        out << string(name) << uint(values.size)
        values.each { |each| out << string(each) }
      end
      out
    end

    def uint(number)
      out = "".b
      while number > 127
        out << (number & 127 | 128)
        number >>= 7
      end
      out << number
    end

    def string(text)
      text = octets(text)
      uint(text.bytesize) << text
    end

    # UTF-8 and binary strings byte for byte; what is in another encoding as UTF-8.
    def octets(text)
      case text.encoding
      when Encoding::BINARY then text
      when Encoding::UTF_8, Encoding::US_ASCII then text.b
      else text.encode(Encoding::UTF_8).b
      end
    end

    # A whole response's frame, in pieces that are written in one go.
    def framed(head, body)
      body = octets(body)
      head = "\0".b << head << uint(body.bytesize)
      size = head.bytesize + body.bytesize
      raise ArgumentError, "a response of #{size} bytes is larger than a frame can be" if size > MAX_FRAME_SIZE

      start = [size].pack("V") << head
      body.bytesize < LARGE_BODY ? [start << body] : [start, body]
    end

    def sized(message)
      [message.bytesize].pack("V") << message
    end

    def collect(body)
      whole = "".b
      body.each { |piece| whole << octets(piece) }
      whole
    ensure
      body.close if body.respond_to?(:close)
    end

    # An error before the first piece is answered as any other. Later the only way to tell the client that its answer
    # is not whole is to end without ResponseEnd.
    def stream(request, head, body)
      started = false
      behind = Behind.new(@requests) if @cancels
      body.each do |piece|
        break if started && behind&.cancelled?

        piece = octets(piece)
        next if piece.empty?

        unless started
          write(sized(RESPONSE_START.chr.b << head))
          started = true
        end
        start = RESPONSE_CHUNK.chr.b << uint(piece.bytesize)
        write([start.bytesize + piece.bytesize].pack("V") << start, piece)
      end
      if started
        write(RESPONSE_END)
      else
        write(*framed(head, ""))
      end
    rescue StandardError, ScriptError, SystemStackError => e
      report("#{request.request_method} #{request.uri.inspect} failed", e)
      exit 1 if started
      write(*FAILED)
    ensure
      behind&.put_back
      close(request, body)
    end

    def close(request, body)
      body.close if body.respond_to?(:close)
    rescue StandardError => e
      report("closing the answer to #{request.request_method} #{request.uri.inspect} failed", e)
    end

    def write(*pieces)
      @answers.write(*pieces)
    rescue Errno::EPIPE
      raise ServerGone
    end

    def say_ready(features)
      write(sized(READY.chr.b << uint(features.size) << features.map { |each| string(each) }.join))
    end

    def check_health
      begin
        @health_check&.call
        ok = true
        message = ""
      rescue StandardError, ScriptError, SystemStackError => e
        report("the health check failed", e)
        exit 1 unless @replies # to a server that wants no reply an unwell process says so by ending
        ok = false
        message = "#{e.class}: #{e.message}".scrub.byteslice(0, MAX_MESSAGE_SIZE).scrub("")
      end
      write(sized(HEALTH_REPLY.chr.b << (ok ? 1 : 0) << string(message))) if @replies
    end

    # The exception with its trace, from the program's own frames on.
    def report(what, error)
      error.backtrace&.reject! { |line| line.start_with?(__FILE__) }
      $stderr.write("poolparty: #{what}\n#{error.full_message(highlight: false, order: :top)}\n")
    rescue StandardError
      nil # a broken stderr must not cost the client its answer
    end

    # Take the two pipes so that no program which a handler starts inherits them: it finds /dev/null on its standard
    # input, and so does whatever reads $stdin here. Ruby marks what it opens as not to be inherited.
    def take_descriptors
      @requests = $stdin.dup.binmode
      @answers = IO.for_fd(3, "wb")
      raise IOError unless [@requests, @answers].none? { |pipe| pipe.stat.file? || pipe.stat.chardev? || pipe.tty? }

      @answers.close_on_exec = true
      @answers.sync = true
      $stdin.reopen(File::NULL)
    rescue SystemCallError, IOError, ArgumentError
      abort "poolparty: descriptors 0 and 3 are not the server's pipes. This program is started by the server: " \
            "poolparty -- ruby #{$PROGRAM_NAME}"
    end

    def prepare_process
      # A terminal's Ctrl-C is for the server, which then drains: this process ends when its pipe does. A handler and
      # not "IGNORE", because programs started from here would inherit that.
      before = trap("INT") {}
      trap("INT", before) unless before == "DEFAULT"
      $stdout.sync = true # to a pipe Ruby would write when its buffer is full, and the log show lines minutes late
    end

    # Have SIGUSR1 write the program's stack to stderr: whether it does. A program that has a use of its own for the
    # signal keeps it. Ruby calls this in the main thread, between two instructions or out of a wait that goes on.
    def shows_stack?
      before = trap("USR1") do
        frames = Thread.main.backtrace.reject { |line| line.start_with?(__FILE__) }
        STDERR.write("poolparty: the program's stack\n#{frames.map { |line| "\tfrom #{line}\n" }.join}")
      rescue StandardError
        nil # a broken stderr must not cost the client its answer
      end
      trap("USR1", before) unless before == "DEFAULT"
      before == "DEFAULT"
    end

    TYPE = "Content-Type"
    TEXT = "\xC8\x01\x01\x0C#{TYPE}\x01\x19text/plain; charset=utf-8".b.freeze
    OCTETS = "\xC8\x01\x01\x0C#{TYPE}\x01\x18application/octet-stream".b.freeze
    FAILURE = "\x00\xF4\x03\x01\x0C#{TYPE}\x01\x19text/plain; charset=utf-8\x16internal server error\n".b
    FAILED = [([FAILURE.bytesize].pack("V") << FAILURE).freeze].freeze
  end
  private_constant :Behind, :Reader, :ServerGone, :Worker
end
