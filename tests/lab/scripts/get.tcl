# One GET by Tcl's http package and TclTLS.
package require http
package require tls
http::register https 443 [list ::tls::socket -autoservername 1 -require 1 -cafile [lindex $argv 1]]
exit [expr {[http::ncode [http::geturl [lindex $argv 0]]] != 200}]
