-- One GET by LuaSocket and LuaSec.
local https = require("ssl.https")
local _, code = https.request{url = arg[1], cafile = arg[2], verify = "peer", protocol = "any"}
print(code)
os.exit(code == 200 and 0 or 1)
