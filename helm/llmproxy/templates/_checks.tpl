{{/* Contradictions that the schema of the values cannot see. */}}

{{- define "llmproxy.checks" -}}
{{- include "llmproxy.checkStorage" . -}}
{{- include "llmproxy.checkBackends" . -}}
{{- include "llmproxy.checkReferences" . -}}
{{- include "llmproxy.checkRoutes" . -}}
{{- include "llmproxy.checkEgress" . -}}
{{- include "llmproxy.checkReplicas" . -}}
{{- include "llmproxy.checkSecrets" (dict "node" .Values.config "path" "config") -}}
{{- range $i, $fleet := .Values.vllm.fleets -}}
{{- include "llmproxy.checkSecrets" (dict "node" ($fleet.backend | default dict) "path" (printf "vllm.fleets[%d].backend" $i)) -}}
{{- end -}}
{{- include "llmproxy.checkSecrets" (dict "node" .Values.redis.options "path" "redis.options") -}}
{{- include "llmproxy.checkSecrets" (dict "node" .Values.database.options "path" "database.options") -}}
{{- end -}}

{{- define "llmproxy.checkStorage" -}}
{{- $v := .Values -}}
{{- if and $v.persistence.enabled (eq (include "llmproxy.kind" .) "Deployment") -}}
{{- fail "persistence.enabled: a spool belongs to one gateway, and the pods of a Deployment would share the volume; leave `kind` out or set it to StatefulSet" -}}
{{- end -}}
{{- if not (hasPrefix "/" (toString $v.config.data_dir)) -}}
{{- fail "config.data_dir: must be an absolute path; a volume is mounted there" -}}
{{- end -}}
{{- $spool := dig "usage" "spool" dict $v.config -}}
{{- if not (eq (toString (get $spool "enabled")) "false") -}}
{{- $key := ternary "persistence.size" "emptyDirSize" $v.persistence.enabled -}}
{{- $size := ternary $v.persistence.size $v.emptyDirSize $v.persistence.enabled -}}
{{- $most := get $spool "max_size" | default "1GiB" -}}
{{- $room := include "llmproxy.bytes" (dict "size" $size "key" $key) | int64 -}}
{{- if le $room (include "llmproxy.bytes" (dict "size" $most "key" "config.usage.spool.max_size") | int64) -}}
{{- fail (printf "%s: %s has no room for a full spool (config.usage.spool.max_size, %s)" $key (toString $size) (toString $most)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "llmproxy.checkBackends" -}}
{{- range .Values.vllm.fleets -}}
{{- if not (or .selector .host) -}}
{{- fail (printf "vllm.fleets: %s has neither a selector nor a host" .name) -}}
{{- end -}}
{{- if has .name (list "metrics" "admin" "headless" "simulator" "test" "dashboard") -}}
{{- fail (printf "vllm.fleets: %s is a name that the chart needs for itself" .name) -}}
{{- end -}}
{{- end -}}
{{- $backends := (include "llmproxy.config" . | fromYaml).backends -}}
{{- $names := list -}}
{{- range $backends -}}
{{- if and .name (has .name $names) -}}
{{- fail (printf "backends: two of them have the name %s" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- end -}}

{{- define "llmproxy.checkReferences" -}}
{{- $v := .Values -}}
{{- if and $v.existingConfigMap (ne $v.reload "in-place") -}}
{{- fail "reload: the chart does not see changes of `existingConfigMap`; `rollout` needs the chart's own" -}}
{{- end -}}
{{- if and $v.admin.enabled (not $v.admin.existingSecret) -}}
{{- fail "admin.existingSecret: the admin API needs a token, by reference to a Secret" -}}
{{- end -}}
{{- if and (not $v.admin.enabled) (dig "admin" "enabled" false $v.config) -}}
{{- fail "config.admin.enabled: set admin.enabled, so that port, Service and token are there as well" -}}
{{- end -}}
{{- if and $v.tls.enabled (not $v.tls.secretName) -}}
{{- fail "tls.secretName: names no Secret" -}}
{{- end -}}
{{- if dig "server" "tls" "" $v.config -}}
{{- fail "config.server.tls: set tls.enabled and tls.secretName, so that the files are there and probes speak HTTPS" -}}
{{- end -}}
{{- if and $v.redis.enabled (not $v.redis.addr) -}}
{{- fail "redis.addr: is missing" -}}
{{- end -}}
{{- if and $v.database.enabled (not $v.database.host) -}}
{{- fail "database.host: is missing" -}}
{{- end -}}
{{- end -}}

{{- define "llmproxy.checkRoutes" -}}
{{- $v := .Values -}}
{{- if and $v.ingress.enabled (not $v.ingress.hosts) -}}
{{- fail "ingress.hosts: an Ingress without a host would take the requests of everybody; name one" -}}
{{- end -}}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.parentRefs) -}}
{{- fail "httpRoute.parentRefs: name the gateway that it belongs to" -}}
{{- end -}}
{{- end -}}

{{/* Whom the rules of the chart do not know. */}}
{{- define "llmproxy.checkEgress" -}}
{{- $v := .Values -}}
{{- if and $v.networkPolicy.enabled $v.networkPolicy.egress.enabled (not $v.networkPolicy.egress.rules) -}}
{{- $others := ternary (list "redis") list $v.redis.enabled -}}
{{- $others = ternary (append $others "database") $others $v.database.enabled -}}
{{- $others = ternary (append $others "config.backends") $others (not (empty $v.config.backends)) -}}
{{- range $v.vllm.fleets -}}
{{- if .host }}{{ $others = append $others (printf "the host of the fleet %s" .name) }}{{ end -}}
{{- end -}}
{{- if $others -}}
{{- fail (printf "networkPolicy.egress.rules: nothing leads to %s" (join ", " $others)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "llmproxy.checkReplicas" -}}
{{- $v := .Values -}}
{{- $a := $v.autoscaling -}}
{{- if $a.enabled -}}
{{- if gt (int $a.minReplicas) (int $a.maxReplicas) -}}
{{- fail (printf "autoscaling: minReplicas (%d) is more than maxReplicas (%d)" (int $a.minReplicas) (int $a.maxReplicas)) -}}
{{- end -}}
{{- if not (or $a.targetCPUUtilizationPercentage $a.targetRequestsInFlight $a.metrics) -}}
{{- fail "autoscaling: there is no metric to scale by" -}}
{{- end -}}
{{- if and $a.targetCPUUtilizationPercentage (not (dig "requests" "cpu" "" $v.resources)) -}}
{{- fail "autoscaling.targetCPUUtilizationPercentage: is in relation to resources.requests.cpu, which is missing" -}}
{{- end -}}
{{- end -}}
{{- if include "llmproxy.several" . -}}
{{- range dig "auth" "pipeline" list $v.config -}}
{{- if and (eq (toString .type) "builtin") (ne (toString .enabled) "false") -}}
{{- fail "config.auth.pipeline: keys of type `builtin` are in a file of each gateway, and others would not know them; use redis or database, or one gateway (replicaCount: 1, no autoscaling)" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A ConfigMap is readable for many, so no secret may stand in it. What has a variable is taken for a reference. */}}
{{- define "llmproxy.checkSecrets" -}}
{{- $path := .path -}}
{{- if kindIs "map" .node -}}
{{- range $key, $value := .node -}}
{{- $here := printf "%s.%s" $path $key -}}
{{- if kindIs "string" $value -}}
{{- $secret := regexMatch "(?i)^(api[_-]?key|password|token|secret|cache_salt_secret|authorization|proxy-authorization|cookie|x-.*(key|token))$" $key -}}
{{- $secret = or $secret (and (eq $key "key") (regexMatch "(api_keys|static\\.keys)\\[[0-9]+\\]$" $path)) -}}
{{- $secret = or $secret (and (eq $key "dsn") (regexMatch ":[^/@][^@]*@" $value)) -}}
{{- $secret = or $secret (regexMatch "://[^/@]*:[^/@]+@" $value) -}}
{{- if and $secret $value (not (contains "${" $value)) -}}
{{- fail (printf "%s: a secret in a ConfigMap; put it into a Secret, name that in `secrets`, and write ${NAME} here" $here) -}}
{{- end -}}
{{- else -}}
{{- include "llmproxy.checkSecrets" (dict "node" $value "path" $here) -}}
{{- end -}}
{{- end -}}
{{- else if kindIs "slice" .node -}}
{{- range $i, $item := .node -}}
{{- include "llmproxy.checkSecrets" (dict "node" $item "path" (printf "%s[%d]" $path $i)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
