# frozen_string_literal: true

# Rack applications (Sinatra, Rails, Hanami, Roda …), Rack 2 and 3:
#
#     poolparty -- ruby -rpoolparty/rack config.ru
#     poolparty -- bundle exec ruby -rpoolparty/rack config.ru
#
# Ruby loads this file before its program. If that is a .ru file, it is served from here and never run as a program;
# otherwise the program calls Poolparty::Rack.serve(app). The application is loaded before the child is ready, so
# that no request waits for it. One request at a time: rack.multithread is false, rack.multiprocess true.
require "poolparty"
require "rack"
require "stringio"

module Poolparty
  module Rack
    # Serve a Rack application; see Poolparty.serve.
    def self.serve(app, health_check: nil)
      Poolparty.serve(Adapter.new(app), health_check: health_check)
    end

    # The application that a .ru file builds.
    def self.load(path)
      app = ::Rack::Builder.parse_file(path)
      app.is_a?(Array) ? app.first : app # Rack 2 gives options too
    end

    # Calls the application with what its request is in Rack's words, and gives Poolparty what it answers.
    class Adapter
      def initialize(app)
        @app = app
        @constant = {
          "SCRIPT_NAME" => "",
          "SERVER_PROTOCOL" => "HTTP/1.1",
          "SERVER_SOFTWARE" => "poolparty/#{VERSION}",
          "rack.version" => [1, 6],
          "rack.errors" => $stderr,
          "rack.multithread" => false,
          "rack.multiprocess" => true,
          "rack.run_once" => false,
          "rack.hijack?" => false
        }.freeze
      end

      def call(request)
        status, headers, body = @app.call(environment(request))
        [Integer(status), fields(headers), whole_or_pieces(body)]
      end

      private

      def environment(request)
        environment = @constant.dup
        environment["REQUEST_METHOD"] = request.request_method
        environment["PATH_INFO"] = octets(request.path)
        environment["QUERY_STRING"] = octets(request.query_string)
        environment["REQUEST_URI"] = octets(request.uri.sub(%r{\A[^/]*://[^/?]*}, ""))
        add_headers(environment, request)
        add_addresses(environment, request)
        environment["rack.input"] = StringIO.new(request.body)
        environment
      end

      def add_headers(environment, request)
        request.headers.each do |name, value|
          name = name.upcase.tr("-", "_")
          name = "HTTP_#{name}" unless name == "CONTENT_TYPE" || name == "CONTENT_LENGTH"
          environment[name] = octets(value)
        end
        environment.delete("HTTP_TRANSFER_ENCODING") # undone: the body is whole
        environment["CONTENT_LENGTH"] ||= request.body.bytesize.to_s unless request.body.empty?
      end

      def add_addresses(environment, request)
        scheme, rest = request.uri.split("://", 2)
        host, port = rest[%r{\A[^/?]*}].match(/\A(.*?)(?::(\d*))?\z/).captures
        environment["rack.url_scheme"] = scheme
        environment["HTTPS"] = "on" if scheme == "https"
        environment["SERVER_NAME"] = host.empty? ? "localhost" : host
        environment["SERVER_PORT"] = port && !port.empty? ? port : { "https" => "443" }.fetch(scheme, "80")
        host, _, port = request.remote_address.rpartition(":")
        environment["REMOTE_ADDR"] = host.delete_prefix("[").delete_suffix("]")
        environment["REMOTE_PORT"] = port unless host.empty?
      end

      # Rack wants what is not ASCII as binary strings.
      def octets(text)
        text.ascii_only? ? text : text.b
      end

      # Rack 2 writes several values of a header as lines, Rack 3 as an Array.
      def fields(headers)
        fields = {}
        headers.each do |name, value|
          next if name.start_with?("rack.")

          fields[name] = value.is_a?(Array) ? value.map(&:to_s) : value.to_s.split("\n")
          fields[name] << "" if fields[name].empty? && !value.is_a?(Array)
        end
        fields
      end

      # An Array is sent whole; to_ary is nil where there is none (Rails, of a stream). What calls back with a
      # stream (Rack 3) gives its pieces as others do.
      def whole_or_pieces(body)
        pieces = body.to_ary if body.respond_to?(:to_ary)
        if pieces
          body.close if body.respond_to?(:close)
          pieces.size == 1 ? pieces.first : pieces.map(&:b).join
        elsif body.respond_to?(:each)
          body
        else
          Callback.new(body)
        end
      end
    end

    # A streaming body of Rack 3 as one with `each`.
    class Callback
      def initialize(body)
        @body = body
      end

      def each(&block)
        @body.call(Stream.new(block))
      end

      def close
        @body.close if @body.respond_to?(:close)
      end
    end

    # What a streaming body writes to. The request's body has been read already; there is nothing more to read.
    class Stream
      def initialize(sink)
        @sink = sink
        @closed = false
      end

      def write(*pieces)
        raise IOError, "closed stream" if @closed

        pieces.each { |piece| @sink.call(piece.to_s) }
        pieces.sum { |piece| piece.to_s.bytesize }
      end

      def <<(piece)
        write(piece)
        self
      end

      def read(length = nil, _buffer = nil)
        length ? nil : ""
      end

      def flush
        self
      end

      def close(_error = nil)
        @closed = true
      end
      alias close_write close

      def close_read; end

      def closed?
        @closed
      end
    end

    private_constant :Adapter, :Callback, :Stream
  end
end

if $PROGRAM_NAME.end_with?(".ru")
  Poolparty::Rack.serve(Poolparty::Rack.load($PROGRAM_NAME))
  exit
end
