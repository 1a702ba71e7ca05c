{{/* The configuration of the gateway: `config`, with the additions of other values. */}}

{{/* `vllm.fleets`. Default, if there are no other backends: the pods with vLLM's own label. */}}
{{- define "llmproxy.fleets" -}}
{{- $v := .Values -}}
{{- $others := or $v.existingConfigMap $v.simulator.enabled $v.config.backends (dig "discovery" "sources" list $v.config) -}}
{{- $vllm := dict "name" "vllm" "selector" (dict "app.kubernetes.io/name" "vllm") -}}
{{- $v.vllm.fleets | default (ternary list (list $vllm) (not (empty $others))) | toYaml -}}
{{- end -}}

{{- define "llmproxy.fleetService" -}}
{{- printf "%s-%s" (include "llmproxy.fullname" .root) .fleet.name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "llmproxy.serviceHost" -}}
{{- printf "%s.%s.svc.%s" .name .root.Release.Namespace .root.Values.clusterDomain -}}
{{- end -}}

{{/* An entry of `vllm.fleets` as a backend. */}}
{{- define "llmproxy.fleetBackend" -}}
{{- $service := include "llmproxy.fleetService" . -}}
{{- $host := .fleet.host | default (include "llmproxy.serviceHost" (dict "root" .root "name" $service)) -}}
{{- $backend := dict "name" .fleet.name "url" (printf "http://%s:%d" $host (int (.fleet.port | default 8000))) "addresses" "each" "engine" "vllm" -}}
{{- with .fleet.models }}{{ $_ := set $backend "models" . }}{{ end -}}
{{- with .fleet.weight }}{{ $_ := set $backend "weight" . }}{{ end -}}
{{- mergeOverwrite $backend (deepCopy (.fleet.backend | default dict)) | toYaml -}}
{{- end -}}

{{- define "llmproxy.redisCache" -}}
{{- $r := .Values.redis -}}
{{- $cache := dict "name" $r.name "driver" "redis" "addr" $r.addr "db" $r.db -}}
{{- with $r.username }}{{ $_ := set $cache "username" . }}{{ end -}}
{{- if $r.existingSecret }}{{ $_ := set $cache "password" "${LLMPROXY_REDIS_PASSWORD}" }}{{ end -}}
{{- mergeOverwrite $cache (deepCopy $r.options) | toYaml -}}
{{- end -}}

{{- define "llmproxy.databaseEntry" -}}
{{- $d := .Values.database -}}
{{- $entry := dict "name" $d.name "driver" $d.driver "host" $d.host "user" $d.user "database" $d.database -}}
{{- with $d.port }}{{ $_ := set $entry "port" . }}{{ end -}}
{{- if $d.existingSecret }}{{ $_ := set $entry "password" "${LLMPROXY_DATABASE_PASSWORD}" }}{{ end -}}
{{- mergeOverwrite $entry (deepCopy $d.options) | toYaml -}}
{{- end -}}

{{- define "llmproxy.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $backends := $config.backends | default list -}}
{{- range include "llmproxy.fleets" . | fromYamlArray -}}
{{- $backends = append $backends (include "llmproxy.fleetBackend" (dict "root" $ "fleet" .) | fromYaml) -}}
{{- end -}}
{{- if .Values.simulator.enabled -}}
{{- $host := include "llmproxy.serviceHost" (dict "root" . "name" (printf "%s-simulator" (include "llmproxy.fullname" .))) -}}
{{- $backends = append $backends (dict "name" "simulator" "url" (printf "http://%s:8000" $host) "addresses" "each") -}}
{{- end -}}
{{- $_ := set $config "backends" $backends -}}
{{- $storage := $config.storage | default dict -}}
{{- if .Values.redis.enabled -}}
{{- $_ := set $storage "caches" (append ($storage.caches | default list) (include "llmproxy.redisCache" . | fromYaml)) -}}
{{- end -}}
{{- if .Values.database.enabled -}}
{{- $_ := set $storage "databases" (append ($storage.databases | default list) (include "llmproxy.databaseEntry" . | fromYaml)) -}}
{{- end -}}
{{- with $storage }}{{ $_ := set $config "storage" . }}{{ end -}}
{{- if .Values.admin.enabled -}}
{{- $admin := dict "enabled" true "listen" (printf ":%d" (int .Values.admin.port)) "token" "${LLMPROXY_ADMIN_TOKEN}" -}}
{{- $_ := set $config "admin" (mergeOverwrite (deepCopy ($config.admin | default dict)) $admin) -}}
{{- end -}}
{{- if .Values.tls.enabled -}}
{{- $server := $config.server | default dict -}}
{{- $_ := set $server "tls" (dict "cert_file" "/run/secrets/llmproxy-tls/tls.crt" "key_file" "/run/secrets/llmproxy-tls/tls.key") -}}
{{- $_ := set $config "server" $server -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* The keys that need a restart: their change rolls the pods for any value of `reload`. */}}
{{- define "llmproxy.restartKeys" -}}
{{- $config := include "llmproxy.config" . | fromYaml -}}
{{- $server := $config.server | default dict -}}
{{- $fixed := pick $config "listen" "data_dir" "admin" -}}
{{- $_ := set $fixed "server" (pick $server "threads" "metrics_listen" "tls" "h2c") -}}
{{- $_ := set $fixed "log.format" (dig "log" "format" "" $config) -}}
{{- $_ := set $fixed "rate_limit.db_path" (dig "rate_limit" "db_path" "" $config) -}}
{{- $_ := set $fixed "usage.spool" (pick (dig "usage" "spool" dict $config) "enabled" "path") -}}
{{- toJson $fixed -}}
{{- end -}}

{{/* The port of an address in the configuration; `key` is the name for error messages. */}}
{{- define "llmproxy.port" -}}
{{- $port := regexFind ":[0-9]+$" (toString .address) | trimPrefix ":" -}}
{{- if not $port -}}
{{- fail (printf "config.%s: %q does not end in a port, as in \":8000\"; ports of pod and Services follow from it, so it cannot be a variable" .key (toString .address)) -}}
{{- end -}}
{{- $port -}}
{{- end -}}

{{/* A duration in the configuration as whole seconds, rounded up. */}}
{{- define "llmproxy.seconds" -}}
{{- $text := .duration | toString | trim -}}
{{- if eq $text "0" -}}
0
{{- else -}}
{{- if not (regexMatch "^([0-9]+(\\.[0-9]+)?(ms|s|m|h|d))+$" $text) -}}
{{- fail (printf "config.%s: %q is not a duration like 60s; the grace period of the pods follows from it, so it cannot be a variable" .key $text) -}}
{{- end -}}
{{- $units := dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "d" 86400.0 -}}
{{- $sum := 0.0 -}}
{{- range regexFindAll "[0-9]+(\\.[0-9]+)?(ms|s|m|h|d)" $text -1 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- $sum = addf $sum (mulf (float64 (trimSuffix $unit .)) (get $units $unit)) -}}
{{- end -}}
{{- ceil $sum | int64 -}}
{{- end -}}
{{- end -}}

{{/* A size in bytes: `5Gi` as Kubernetes writes it, `1GiB` as the gateway does. */}}
{{- define "llmproxy.bytes" -}}
{{- $text := ternary (int64 .size | toString) (toString .size | trim) (or (kindIs "float64" .size) (kindIs "int64" .size)) -}}
{{- $number := regexFind "^[0-9]+(\\.[0-9]+)?" $text -}}
{{- $unit := trimPrefix $number $text | trim | upper | trimSuffix "B" -}}
{{- $units := dict "" 1 "K" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "KI" 1024 "MI" 1048576 "GI" 1073741824 "TI" 1099511627776 -}}
{{- if or (not $number) (not (hasKey $units $unit)) -}}
{{- fail (printf "%s: %q is not a size like 5Gi" .key $text) -}}
{{- end -}}
{{- mulf (float64 $number) (get $units $unit) | int64 -}}
{{- end -}}

{{/* The seconds that a pod needs to terminate: preStop, the streams, and the last records. */}}
{{- define "llmproxy.gracePeriod" -}}
{{- $drain := dig "server" "graceful_shutdown_timeout" "60s" .Values.config -}}
{{- $drain = include "llmproxy.seconds" (dict "duration" $drain "key" "server.graceful_shutdown_timeout") | int -}}
{{- $least := add (int .Values.preStopSeconds) $drain 15 -}}
{{- $given := .Values.terminationGracePeriodSeconds -}}
{{- if kindIs "invalid" $given -}}
{{- $least -}}
{{- else if lt (int64 $given) $least -}}
{{- fail (printf "terminationGracePeriodSeconds: %d would kill streams; preStopSeconds (%d), config.server.graceful_shutdown_timeout (%ds) and 15s for the last records make %d" (int64 $given) (int64 .Values.preStopSeconds) $drain $least) -}}
{{- else -}}
{{- int64 $given -}}
{{- end -}}
{{- end -}}
