;; One GET by Guile's web client and GnuTLS.
(use-modules (web client))
(http-get (cadr (command-line)) #:verify-certificate? #f)
