# One GET by Net::HTTP.
require 'net/http'
require 'openssl'
url = URI(ARGV[0])
http = Net::HTTP.new(url.host, url.port)
http.use_ssl = true
http.ca_file = ARGV[1]
puts http.get('/').code
