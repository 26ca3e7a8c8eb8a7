<?php // One GET by PHP's streams.
$context = stream_context_create(['ssl' => ['cafile' => $argv[2]]]);
exit(file_get_contents($argv[1], false, $context) === false ? 1 : 0);
