# Crystal's fibers switch inside OpenSSL's handshake: its sockets are a BIO of its own. What they
# print is in the order of the server's answers.
require "openssl"
require "socket"

done = Channel(Nil).new
results = {} of Int32 => String
[4430, 4431, 4433].each do |port|
  spawn do
    tcp = TCPSocket.new("name.zoo.test", port)
    context = OpenSSL::SSL::Context::Client.insecure
    tls = OpenSSL::SSL::Socket::Client.new(tcp, context, sync_close: true)
    word = Bytes.new(2)
    tls.read(word)
    results[port] = String.new(word)
    tls.close rescue nil
    done.send nil
  end
end
3.times { done.receive }
puts results.to_a.sort
