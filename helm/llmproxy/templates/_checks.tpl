{{/* Contradictions that values.schema.json cannot express. */}}

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
{{- fail "persistence.enabled: a spool belongs to one gateway, and the pods of a Deployment would share the volume; remove `kind` or set it to StatefulSet" -}}
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
{{- fail (printf "%s: %s is too small for a full spool (config.usage.spool.max_size, %s)" $key (toString $size) (toString $most)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "llmproxy.checkBackends" -}}
{{- range .Values.vllm.fleets -}}
{{- if not (or .selector .host) -}}
{{- fail (printf "vllm.fleets: %s has neither a selector nor a host" .name) -}}
{{- end -}}
{{- if has .name (list "metrics" "admin" "headless" "simulator" "test" "dashboard") -}}
{{- fail (printf "vllm.fleets: the name %s is reserved by the chart" .name) -}}
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
{{- fail "reload: `rollout` does not work with `existingConfigMap`, as the chart does not see its changes" -}}
{{- end -}}
{{- if and $v.admin.enabled (not $v.admin.existingSecret) -}}
{{- fail "admin.existingSecret: the admin API needs a token, by reference to a Secret" -}}
{{- end -}}
{{- if and (not $v.admin.enabled) (dig "admin" "enabled" false $v.config) -}}
{{- fail "config.admin.enabled: set admin.enabled instead, which also adds the port, the Service and the token" -}}
{{- end -}}
{{- if and $v.tls.enabled (not $v.tls.secretName) -}}
{{- fail "tls.secretName: is missing" -}}
{{- end -}}
{{- if dig "server" "tls" "" $v.config -}}
{{- fail "config.server.tls: set tls.enabled and tls.secretName instead, which also mount the files and make the probes use HTTPS" -}}
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
{{- fail "ingress.hosts: is missing; an Ingress without a host would receive the requests for all hosts" -}}
{{- end -}}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.parentRefs) -}}
{{- fail "httpRoute.parentRefs: is missing; name the Gateway to attach to" -}}
{{- end -}}
{{- end -}}

{{/* Targets outside the cluster's fleets need rules of their own. */}}
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
{{- fail (printf "networkPolicy.egress.rules: no rule allows %s" (join ", " $others)) -}}
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
{{- fail "autoscaling: set at least one metric" -}}
{{- end -}}
{{- if and $a.targetCPUUtilizationPercentage (not (dig "requests" "cpu" "" $v.resources)) -}}
{{- fail "autoscaling.targetCPUUtilizationPercentage: needs resources.requests.cpu, which is missing" -}}
{{- end -}}
{{- end -}}
{{- if include "llmproxy.several" . -}}
{{- range dig "auth" "pipeline" list $v.config -}}
{{- if and (eq (toString .type) "builtin") (ne (toString .enabled) "false") -}}
{{- fail "config.auth.pipeline: keys of type `builtin` are in a file of one gateway, which the others cannot read; use redis or database, or one gateway (replicaCount: 1, no autoscaling)" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Many can read a ConfigMap, so it must not contain secrets. A value with a variable counts as a reference. */}}
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
{{- fail (printf "%s: a ConfigMap must not contain a secret; put it into a Secret, refer to it in `secrets`, and write ${NAME} here" $here) -}}
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
