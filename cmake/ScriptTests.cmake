# CTest entries that are scripts: label "static" looks at the sources, "rpc", "lvol" and "guest" drive the built daemon,
# "bench" runs the measurements briefly.
# An instrumented build has the unit tests only: scripts/test.sh runs these once, with the release.
if(SLUICE_SANITIZE)
  return()
endif()

foreach(check check-layers check-headers "format --check")
  separate_arguments(command UNIX_COMMAND "${check}")
  list(POP_FRONT command script)
  add_test(NAME static_${script} COMMAND ${PROJECT_SOURCE_DIR}/scripts/${script} ${command})
  set_tests_properties(static_${script} PROPERTIES LABELS static TIMEOUT 300)
endforeach()
# Compiles on every core by itself.
set_tests_properties(static_check-headers PROPERTIES RUN_SERIAL ON)

# One entry per file of Python tests. They find the daemon by SLUICE_VHOST, the tree of programs by SLUICE_BUILD_DIR.
foreach(label rpc lvol guest bench)
  file(GLOB files RELATIVE ${PROJECT_SOURCE_DIR}/test/${label} CONFIGURE_DEPENDS
       ${PROJECT_SOURCE_DIR}/test/${label}/*_test.py ${PROJECT_SOURCE_DIR}/test/${label}/test_*.py)
  foreach(file ${files})
    get_filename_component(name ${file} NAME_WE)
    add_test(NAME ${label}_${name}
             COMMAND python3 -B -u -m unittest discover -v -s ${PROJECT_SOURCE_DIR}/test/${label} -p ${file})
    set_tests_properties(${label}_${name} PROPERTIES LABELS ${label} TIMEOUT 300
      ENVIRONMENT "SLUICE_VHOST=${PROJECT_BINARY_DIR}/app/vhost/sluice-vhost;SLUICE_BUILD_DIR=${PROJECT_BINARY_DIR}")
    if(label MATCHES "^(guest|bench)$")
      # A guest's or load's processor and the daemon's reactors are busy together: nothing else beside them.
      set_tests_properties(${label}_${name} PROPERTIES RUN_SERIAL ON TIMEOUT 480)
    endif()
  endforeach()
endforeach()
